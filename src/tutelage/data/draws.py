"""Draws that are a function of a text alone: the same in every run and on every machine."""

from __future__ import annotations

import hashlib


def fraction(text: str) -> float:
    """A number in [0, 1), uniform over texts."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
