"""The small form of `make chaos`: each stage killed twice at random moments, and twice before changes of the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from scenarios import NAMES


def test_killed_runs_end_with_the_same_bytes() -> None:
    environment = os.environ | {"KILLS": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    code = [sys.executable, str(Path(__file__).with_name("chaos.py"))]
    done = subprocess.run(code, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{2 * len(NAMES)} killed at a random moment" in done.stdout.splitlines()[-1]
