"""tutelage: language models that follow instructions, trained with human feedback (Ouyang et al. 2022)."""

import os

__version__ = "0.1.0"

# Threads of torch's OpenMP wait for each other by spinning, by default for milliseconds. Beside busy processes they
# spin while the one they wait for has no core, and everything takes ten times as long. A shorter spin costs an idle
# machine nothing (LOG.md). It counts only if torch is not imported yet.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
