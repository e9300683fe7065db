"""How completions are sampled, and by which engine."""

from __future__ import annotations

from typing import Literal

from tutelage.settings.common import Count, Group, Number


class LocalSampling(Group):
    """The engine of this package, in this process."""

    name: Literal["local"] = "local"
    """Which engine samples."""
    temperature: Number = 1.0
    """Divides the logits; 0 is greedy. Log-probabilities are taken at the same temperature."""
    max_new_tokens: Count = 256
    """Most tokens of a completion."""
    batch_tokens: Count = 32_768
    """Size of the cache in tokens, for all completions sampled at once, prompts included."""


Sampling = LocalSampling  # what `sampler` can be
