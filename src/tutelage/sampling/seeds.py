"""Randomness that belongs to the request: seeds are functions of what is asked, uniforms of seed and step."""

from __future__ import annotations

import hashlib

import torch


def _signed(x: int) -> int:
    """A 64-bit pattern as the signed integer that torch holds."""
    return (x + (1 << 63)) % (1 << 64) - (1 << 63)


_GOLDEN, _MIX1, _MIX2 = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def request_seed(run_seed: int, iteration: int, prompt_id: str, k: int) -> int:
    """The seed of the k-th sample of a prompt in an iteration of a run: 63 bits of a hash of the four."""
    digest = hashlib.blake2b(f"{run_seed}/{iteration}/{prompt_id}/{k}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def uniforms(seeds: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """(n,) float64 in [0, 1): the step-th (n,) output of SplitMix64 (Steele et al. 2014) started at each seed."""
    z = seeds + (step + 1) * _GOLDEN
    z = (z ^ _shift_right(z, 30)) * _MIX1
    z = (z ^ _shift_right(z, 27)) * _MIX2
    z = z ^ _shift_right(z, 31)
    return _shift_right(z, 11).double() / (1 << 53)
