"""Which engine samples."""

from __future__ import annotations

from transformers import PreTrainedModel

from tutelage.sampling.local import LocalSampler
from tutelage.sampling.protocol import Sampler
from tutelage.settings.sampler import LocalSampling


def open_sampler(settings: LocalSampling, policy: PreTrainedModel, bf16: bool = False) -> Sampler:
    """An engine with these settings that samples from a policy; in bf16 if asked and where that gains."""
    return LocalSampler(policy, settings.batch_tokens, bf16)
