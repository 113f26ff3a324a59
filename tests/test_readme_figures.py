"""README.md's table of speeds: its numbers are those of the record in docs/bench.json."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# At the end of the path: the package that is tested stays the installed one.
sys.path.append(str(ROOT))
floors = pytest.importorskip("bench.floors", reason="the tests run without bench")

RECORD = ROOT / "docs" / "bench.json"

pytestmark = pytest.mark.skipif(not RECORD.is_file(), reason="the tests run without docs")

# How a row begins, and what of the record it tells.
ROWS = {
    "inference: the fastest of": "{} inference, against the fastest peer",
    "training: PyTorch": "{} training, against torch",
    "training: `torch.nn`, over": "rnnfast.torch, one thread: {} training, against torch.nn",
}


@pytest.fixture(scope="module")
def found():
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    return {floor.name: floors.judge(floor, record) for floor in floors.FLOORS}


@pytest.mark.parametrize("start", ROWS)
def test_the_table_is_that_of_the_record(start, found):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {re.escape(start)}.*\|$", text, re.M)
    cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
    for cell, told in zip(("RNN", "GRU", "LSTM"), cells, strict=True):
        verdict = found[ROWS[start].format(cell)]
        assert told == f"{verdict.mean:.2f} ({verdict.worst.value:.2f})", cell
