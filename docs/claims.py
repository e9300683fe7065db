"""Writes docs/claims.md from what `tutelage claims` found.

tutelage claims --output runs/claims
python docs/claims.py runs/claims
"""

from __future__ import annotations

import sys
from pathlib import Path

from tutelage.files import read_json
from tutelage.lab.claims.page import page

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/claims.py RUNS, the folder that `tutelage claims --output RUNS` wrote")
    content = read_json(Path(sys.argv[1]) / "verdict" / "claims.json")
    Path(__file__).with_suffix(".md").write_text(page(content), encoding="utf-8")
