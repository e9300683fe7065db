"""Which engine samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedModel

from tutelage.sampling.local import LocalSampler
from tutelage.sampling.protocol import Sampler
from tutelage.settings.common import Group
from tutelage.settings.sampler import LocalSampling, Sampling


def _local(settings: LocalSampling, policy: PreTrainedModel, bf16: bool) -> Sampler:
    return LocalSampler(policy, settings.batch_tokens, bf16)


ENGINES: Mapping[type[Group], Callable[[Any, PreTrainedModel, bool], Sampler]] = {LocalSampling: _local}


def open_sampler(settings: Sampling, policy: PreTrainedModel, bf16: bool = False) -> Sampler:
    """An engine with these settings that samples from a policy; in bf16 if asked and where that gains."""
    return ENGINES[type(settings)](settings, policy, bf16)
