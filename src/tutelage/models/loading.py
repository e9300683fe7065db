"""Models from folders and back: Hugging Face's own classes and files, safetensors only, no remote code.

Policies are `AutoModelForCausalLM`; reward and value models `AutoModelForSequenceClassification` with one label.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tutelage.models import attention

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def device() -> torch.device:
    """CUDA if present, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def trains_in_bf16(model: PreTrainedModel) -> bool:
    """Whether bf16 products gain: on CUDA, and on processors with bf16 units once the model is wide enough.

    Below about 128 channels the casts cost what the products save (LOG.md has the measurement).
    """
    if model.device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return has_bf16_units() and model.config.hidden_size >= 128


def has_bf16_units() -> bool:
    """Whether this processor multiplies in bf16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


_exact = False


@contextmanager
def full_precision() -> Iterator[None]:
    """Within it `autocast` casts nothing: for figures that are reported, and compared with other tools'."""
    global _exact
    before, _exact = _exact, True
    try:
        yield
    finally:
        _exact = before


def autocast(model: PreTrainedModel) -> AbstractContextManager[None]:
    """bf16 matrix products where they gain; weights, sums and softmaxes stay in fp32."""
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=trains_in_bf16(model) and not _exact)


def load_policy(folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A causal language model in fp32, in evaluation mode, on the device.

    Raises:
        ValueError: if there is no such model, or its logits are not a linear function of its last hidden states.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: no causal language model found here: {str(error).splitlines()[0]}") from None
    if "ForSequenceClassification" in (model.config.architectures or [""])[0]:
        raise ValueError(f"{folder}: is a reward model; a language model is wanted")
    _fit(model, tokenizer, folder)
    model = model.to(device()).eval()
    _check_head(model, folder)
    return model


def load_scalar(folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A reward or value model: one score for a sequence, read at its final token.

    Raises:
        ValueError: if there is no such model, or it is a language model without a scalar head.
    """
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: no reward model found here: {str(error).splitlines()[0]}") from None
    if "ForCausalLM" in (model.config.architectures or [""])[0]:
        raise ValueError(f"{folder}: is a language model; a reward model is wanted: train one with `tutelage reward`")
    _fit(model, tokenizer, folder)
    return model.to(device()).eval()


def new_scalar(policy_folder: str | Path, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A reward model initialised from a policy, its head ~ N(0, 1/(d+1)) (Stiennon 2020, appendix)."""
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            policy_folder, num_labels=1, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{policy_folder}: no model found here: {str(error).splitlines()[0]}") from None
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise ValueError(
            f"{policy_folder}: {type(model).__name__} has no linear `score` head; this architecture is not supported"
        )
    _fit(model, tokenizer, policy_folder)
    generator = torch.Generator().manual_seed(seed)
    width = model.score.in_features
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(1, width, generator=generator) / math.sqrt(width + 1))
    return model.to(device()).eval()


def _fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Our attention where torch's would be used, and the tokenizer's special tokens."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(attention.NAME)
    vocabulary = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > vocabulary:
        if len(tokenizer) > vocabulary + 1:
            raise ValueError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model only {vocabulary}")
        # The padding token that load_tokenizer added; its row is drawn around the mean of the others, always alike.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id


def output_head(policy: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(weight (v, d), bias (v,) or None) that make logits of last hidden states."""
    head = policy.get_output_embeddings()
    return head.weight, getattr(head, "bias", None)


@torch.no_grad()
def _check_head(policy: PreTrainedModel, folder: str | Path) -> None:
    """Refuse by name what chunked log-probabilities would get wrong: soft-capped, scaled or else changed logits."""
    ids = torch.arange(8, device=policy.device)[None] % policy.config.vocab_size
    hidden = policy.base_model(input_ids=ids).last_hidden_state
    weight, bias = output_head(policy)
    ours = nn.functional.linear(hidden, weight, bias)
    theirs = policy(input_ids=ids).logits
    capped = getattr(policy.config, "final_logit_softcapping", None)  # invisible while logits are small
    if capped or not torch.allclose(ours, theirs, atol=1e-3, rtol=1e-3):
        raise ValueError(
            f"{folder}: {type(policy).__name__} changes its logits after the output layer (soft cap or scale), "
            "which this version does not reproduce; use another architecture"
        )


def context_length(model: PreTrainedModel) -> int:
    """The most tokens a sequence may have: the position table's length, and within any sliding window."""
    config = model.config
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "sliding_window")]
    if getattr(config, "use_sliding_window", True) is False:
        limits = limits[:-1]
    return min((n for n in limits if n), default=2**31)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save model and tokenizer as a plain Hugging Face folder, atomically."""
    scratch = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(scratch, folder)
