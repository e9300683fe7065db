"""How much memory this process holds, on Linux. Needs nothing but Python, as peers' scripts use it too."""

from __future__ import annotations

from pathlib import Path


def resident(peak: bool = False) -> float:
    """MiB of the resident set now, or of its peak since `reset_peak`; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    name = "VmHWM:" if peak else "VmRSS:"
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def reset_peak() -> None:
    """From now on the peak is that of what comes; without the right to, it stays that of the whole life."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
