"""The small form of `make chaos`: each stage killed twice at random moments and twice before changes of the disk, its
checkpoint damaged once if it has one, its folder deleted once while it works, and its disk full or read-only once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from scenarios import NAMES, RESUMED


def test_killed_runs_end_with_the_same_bytes() -> None:
    environment = os.environ | {"KILLS": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    code = [sys.executable, str(Path(__file__).with_name("chaos.py"))]
    done = subprocess.run(code, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    total, _ = done.stdout.splitlines()[-1].removeprefix("all: ").split("; ")
    counts = {what: int(number) for number, _, what in (part.partition(" ") for part in total.split(", "))}
    assert counts["killed at a random moment"] == 2 * len(NAMES)
    assert sum(n for what, n in counts.items() if what.startswith(("bit", "trunc", "deleted"))) == len(RESUMED)
    assert counts["folder deleted at work"] == len(NAMES)
    assert sum(n for what, n in counts.items() if "disk" in what and "killed" not in what) == len(NAMES)
