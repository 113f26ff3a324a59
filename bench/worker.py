"""One process of the benchmark: it reads a task as JSON from stdin and writes a result to stdout.

Each task has a process of its own. It is pinned to its cores, and its number of threads is set
before a library is imported that would start threads.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

# Variables that the libraries read on import; `{}` stands for the number of threads.
THREAD_VARIABLES = {
    "OMP_NUM_THREADS": "{}",
    "MKL_NUM_THREADS": "{}",
    "OPENBLAS_NUM_THREADS": "{}",
    "RNNFAST_NUM_THREADS": "{}",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads={}",
}


def thread_environment(threads: int) -> dict[str, str]:
    """The environment variables of a process that computes with `threads` threads."""
    return {name: value.format(threads) for name, value in THREAD_VARIABLES.items()}


def run_task(task: dict[str, Any]) -> Any:
    """Runs the function called `task["kind"]`; the other entries of `task` are its arguments."""
    from bench import tasks

    arguments = {name: value for name, value in task.items() if name not in ("kind", "cpus")}
    return tasks.TASKS[task["kind"]](**arguments)


def main() -> int:
    """Reads a task and writes {"result": ...}, or {"error": "..."} with status 1."""
    task = json.load(sys.stdin)
    # Only the answer goes to stdout; output that the libraries print goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, task["cpus"])
    try:
        json.dump({"result": run_task(task)}, answers)
    except Exception as error:  # the benchmark reports any error and goes on
        traceback.print_exc()
        json.dump({"error": f"{type(error).__name__}: {error}"}, answers)
        return 1
    finally:
        answers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
