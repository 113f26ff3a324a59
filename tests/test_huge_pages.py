"""Large arrays lie on huge pages, where a walk over rows of several KiB does not miss the TLB."""

from __future__ import annotations

import os

import pytest
from subprocesses import python

WHERE_GRADIENTS_LIE = """
import mmap, re, sys
import numpy as np
import rnnfast

def huge(array):
    \"\"\"The bytes of the mapping that the array lies in, and those of them on huge pages.\"\"\"
    for text in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read(), flags=re.M):
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", text)
        if found and int(found[1], 16) <= array.ctypes.data < int(found[2], 16):
            kilobytes = re.search(r"^AnonHugePages: +(\\d+) kB$", text, re.M)
            return int(found[2], 16) - int(found[1], 16), 1024 * int(kilobytes[1])

control = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
control.madvise(mmap.MADV_HUGEPAGE)
view = np.frombuffer(control, np.uint8)
view[:] = 1
if huge(view)[1] < 14 << 20:
    sys.exit("the system had too few huge pages")
layer, x = rnnfast.RNN(1024, 1024, seed=0), np.ones((1, 1, 1024), np.float32)
# Once malloc has been given back an array of 8 MiB, it has arrays from its heap, and keeps their
# small pages below what is still in use. Arrays of 4 MiB would get those.
first = np.ones(2 << 20, np.float32)
del first
before = [np.ones(1 << 19, np.float32) for _ in range(32)]
in_use = [np.ones(1000, np.float32) for _ in range(100)]
del before
parameters = layer.record(x).backward(np.ones((1, 1, 1024), np.float32)).parameters
for name in ("weight_ih_l0", "weight_hh_l0"):
    size, on_huge = huge(parameters[name])
    assert size >= parameters[name].nbytes
    assert on_huge >= parameters[name].nbytes, (name, size, on_huge)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs Linux's /proc")
def test_large_blocks_lie_on_huge_pages_whatever_was_freed_before(native):
    done = python(WHERE_GRADIENTS_LIE, RNNFAST_BACKEND="native")
    if "too few huge pages" in done.stderr:
        pytest.skip("the system had too few huge pages")
    assert done.returncode == 0, done.stderr
