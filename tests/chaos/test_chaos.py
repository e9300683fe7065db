"""The small form of `make chaos`: each stage killed and damaged a few times."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from scenarios import NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_ends_with_the_same_bytes(name: str) -> None:
    environment = os.environ | {"ONLY": name, "KILLS": "5", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    code = [sys.executable, str(Path(__file__).with_name("chaos.py"))]
    done = subprocess.run(code, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed" in done.stdout
