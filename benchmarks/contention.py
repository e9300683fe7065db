"""How much longer a recipe takes beside busy processes, by how long OpenMP's threads spin at barriers.

    python benchmarks/contention.py                     every spin count, `run smoke`, idle and beside 1 and 2 processes
    python benchmarks/contention.py default 10000       these alone; "default" is libgomp's own

Rounds alternate between the settings, and the median of each is shown with its extremes.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict

SPINS = ("default", "100000", "30000", "10000", "3000", "1000")
BUSY = (0, 1, 2)  # processes that compute without a pause
ROUNDS = 2


def seconds(spin: str, busy: int, recipe: str) -> float:
    """Of one run of the recipe."""
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")}
    environment["GOMP_SPINCOUNT"] = "300000" if spin == "default" else spin  # libgomp's where threads fit the cores
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            command = [sys.executable, "-m", "tutelage", "run", recipe, "--output", folder]
            subprocess.run(command, check=True, env=environment, capture_output=True)
            return time.perf_counter() - started
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    """Print a Markdown table."""
    spins = sys.argv[1:] or SPINS
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        for busy in BUSY:
            for spin in spins:
                found[spin, busy].append(seconds(spin, busy, "smoke"))
                print(f"spin {spin}, beside {busy}: {found[spin, busy][-1]:.1f} s", file=sys.stderr, flush=True)
    print("| spin count | " + " | ".join("idle" if not n else f"beside {n} busy" for n in BUSY) + " |")
    print("|---|" + "---|" * len(BUSY))
    for spin in spins:
        cells = (found[spin, busy] for busy in BUSY)
        shown = (f"{statistics.median(c):.1f} s ({min(c):.1f}–{max(c):.1f})" for c in cells)
        print(f"| {spin} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
