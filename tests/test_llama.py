"""Our forward pass is transformers', for every family, rotation and bias it takes; the rest it leaves to them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any
from unittest import mock

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from tutelage.data.records import Request
from tutelage.models import forward, precision
from tutelage.models.cpu import attention, kernels, llama
from tutelage.models.forward import completion_logprobs, group_scores, hidden_at
from tutelage.models.packing import MicroBatch, micro_batches, tree_batches
from tutelage.sampling.local import LocalSampler

SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 90,
    "intermediate_size": 48, "max_position_embeddings": 128, "initializer_range": 0.3,
}  # fmt: skip
Families = type[PreTrainedConfig]


def model_of(family: Families, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(family(**SHAPE, **settings)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    model.config.pad_token_id = 0
    model.set_attn_implementation(attention.NAME)
    return model


def sequences() -> list[list[int]]:
    rng = Random(0)
    return [[rng.randrange(1, 90) for _ in range(n)] for n in (60, 3, 17, 1, 17)]


def outcome(model: PreTrainedModel, ours: bool) -> list[torch.Tensor]:
    """Hidden states of each sequence's second half, and the gradients of a projection of them."""
    (batch,) = micro_batches(sequences(), 1000, 0)
    half = torch.arange(batch.ids.shape[1]) >= batch.lengths[:, None] // 2
    row, column = (half & (torch.arange(batch.ids.shape[1]) < batch.lengths[:, None])).nonzero(as_tuple=True)
    model.zero_grad()
    with mock.patch.object(llama, "hidden_states", wraps=llama.hidden_states) as seen:
        hidden = hidden_at(model, batch, row, column)
    assert seen.called == ours
    (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return [hidden.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def assert_alike(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 1e-4 * b.norm()


ROPE = {"rope_theta": 10_000.0}
TAKEN: list[tuple[Families, dict[str, Any]]] = [
    (LlamaConfig, {}),
    (LlamaConfig, {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    (LlamaConfig, {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 2.0}}),
    (LlamaConfig, {"rope_parameters": {
        **ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }}),
    (LlamaConfig, {"rope_parameters": {
        **ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
    }}),
    (MistralConfig, {"sliding_window": None}),
    (Qwen2Config, {"tie_word_embeddings": True}),
    (Qwen3Config, {"head_dim": 8}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "settings"), TAKEN)
def test_the_same_as_transformers(family: Families, settings: dict[str, Any]) -> None:
    model = model_of(family, **settings)
    found = outcome(model, ours=kernels.available())
    model.set_attn_implementation("sdpa")
    expected = outcome(model, ours=False)
    assert len(found) == len(expected) > 10
    assert_alike(found, expected)


def a_hook(model: PreTrainedModel) -> None:
    model.base_model.layers[1].mlp.register_forward_hook(lambda module, given, out: 2 * out)


def an_adapter(model: PreTrainedModel) -> None:
    class Adapted(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model.base_model.layers[2].mlp.gate_proj.__class__ = Adapted


def checkpoints(model: PreTrainedModel) -> None:
    model.activation_checkpointing_enable()
    model.train()


def fewer_layers(model: PreTrainedModel) -> None:
    model.config.num_hidden_layers = 2


LEFT: list[tuple[Families, dict[str, Any], Any]] = [
    (LlamaConfig, {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 2.0}}, None),
    (LlamaConfig, {"hidden_act": "gelu"}, None),
    (LlamaConfig, {"attention_dropout": 0.1}, PreTrainedModel.train),
    (MistralConfig, {"sliding_window": 8}, None),
    (Qwen2Config, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, None),
    (LlamaConfig, {}, a_hook),
    (LlamaConfig, {}, an_adapter),
    (LlamaConfig, {}, checkpoints),
    (LlamaConfig, {}, fewer_layers),
    (LlamaConfig, {}, PreTrainedModel.double),
]


@pytest.mark.parametrize(("family", "settings", "change"), LEFT)
def test_what_it_cannot_do_is_left_to_transformers(family: Families, settings: dict[str, Any], change: Any) -> None:
    model = model_of(family, **settings)
    if change:
        change(model)
    assert not llama.supports(model)
    if settings.get("attention_dropout"):
        return  # at random
    found = outcome(model, ours=False)
    model.set_attn_implementation("sdpa")
    assert_alike(found, outcome(model, ours=False))


def test_without_kernels_everything_is_as_with_them() -> None:
    """Log-probabilities of rows, scores of trees."""
    model = forward.with_forward(model_of(LlamaConfig))
    model.score = torch.nn.Linear(32, 1)
    forward.with_forward(model)
    groups = [[[5, 6, 7, 8], [5, 6, 9], [5, 6]], [[3, 4], [3, 5, 6, 7, 8]]]
    found = []
    for there in (True, False):
        with mock.patch.object(kernels, "available", return_value=there):
            assert llama.supports(model) == there
            logprobs = completion_logprobs(model, sequences(), [1, 1, 5, 1, 2])
            found.append([logprobs, *group_scores(model, groups)])
    for a, b in zip(*found, strict=True):
        assert_close(a, b, rtol=0, atol=1e-4)


def test_a_batch_without_padding() -> None:
    """Flat tokens of rows and of trees, and where each went."""
    (rows,) = micro_batches([[7, 8, 9], [5, 6]], 100, 0)
    flat = rows.flat()
    assert flat.ids.tolist() == [5, 6, 7, 8, 9]
    assert flat.positions.tolist() == [0, 1, 0, 1, 2]
    assert (flat.trees.bounds.tolist(), flat.trees.first.tolist()) == ([0, 2, 2, 5], [0, 2, 4])
    assert flat.index[1].tolist() == [2, 3, 4]
    assert flat.index[0, :2].tolist() == [0, 1]
    (trees,) = tree_batches([[[1, 2, 3], [1, 2, 4, 5]], [[6, 7]]], 100, 0)
    flat = trees.flat()
    assert flat.ids.tolist() == [6, 7, 1, 2, 3, 4, 5]
    assert flat.positions.tolist() == [0, 1, 0, 1, 2, 2, 3]
    assert flat.trees.bounds.tolist() == [0, 2, 2, 2, 4, 5, 7]
    assert flat.trees.first.tolist() == [0, 3, 7]
    assert isinstance(rows, MicroBatch)


def test_what_comes_after_the_last_wanted_token_is_not_read() -> None:
    """Rows are cut there, one of which nothing is wanted too; with gradients nobody notices."""
    model = model_of(LlamaConfig)
    (batch,) = micro_batches(sequences(), 1000, 0)  # of 1, 3, 17, 17 and 60 tokens
    row, column = torch.tensor([1, 4, 4, 3]), torch.tensor([0, 30, 9, 16])

    def through(rows: torch.Tensor, columns: torch.Tensor) -> tuple[int, list[torch.Tensor]]:
        model.zero_grad()
        with mock.patch.object(llama, "hidden_states", wraps=llama.hidden_states) as seen:
            hidden = hidden_at(model, batch, rows, columns)[: len(row)]
        hidden.square().sum().backward()
        return len(seen.call_args.args[1].ids), [
            hidden.detach(),
            *(p.grad.clone() for p in model.base_model.parameters()),
        ]

    every = torch.arange(5)
    (read, found), (whole, expected) = through(row, column), through(
        torch.cat([row, every]), torch.cat([column, batch.lengths - 1])
    )  # fmt: skip
    assert (read, whole) == (1 + 31 + 17, 98)
    assert_alike(found, expected)
    assert hidden_at(model, batch, row[:0], column[:0]).shape == (0, found[0].shape[1])


# --- few shapes -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not kernels.available(), reason="no kernels")
def test_bf16_products_have_few_shapes(tiny: Callable[[str], PreTrainedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor builds each new shape first. Rounding up adds tokens that nobody reads: results stay."""
    monkeypatch.setattr(precision, "trains_in_bf16", lambda _: True)
    policy = tiny("llama")
    shapes: set[int] = set()
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: shapes.add(inputs[0].shape[0]))
        for name, module in policy.named_modules()
        if name.endswith("_proj")
    ]
    rng = Random(0)
    sequences = [[rng.randrange(2, 320) for _ in range(n)] for n in (5, 17, 30, 33, 41)]
    found = {}
    for step in (64, 1):
        monkeypatch.setattr(llama, "STEP", step)
        shapes.clear()
        policy.zero_grad()
        for batch in micro_batches(sequences, 60, 0):
            logprobs, entropy = policy.token_logprobs(batch, batch.completion_mask([2] * 5), with_entropy=True)
            (logprobs.sum() + 0 * entropy.sum()).backward()
        found[step] = (logprobs.detach(), *(p.grad.clone() for p in policy.parameters() if p.grad is not None))
        assert (shapes == {64}) == (step == 64)
    for a, b in zip(found[64], found[1], strict=True):
        assert_close(a, b, rtol=0.02, atol=0.02 * float(b.abs().max()))
    for hook in hooks:
        hook.remove()


@pytest.mark.skipif(not kernels.available(), reason="no kernels")
def test_bf16_sampling_has_few_shapes(tiny: Callable[[str], PreTrainedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.sampling.local.trains_in_bf16", lambda _: True)
    policy = tiny("llama")
    requests = [Request((5, 6, *range(7, 7 + k % 5)), k, 4 + k % 7, (20, 21)) for k in range(30)]
    shapes: set[int] = set()
    real = torch.nn.functional.linear

    def watched(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        if x.dtype == torch.bfloat16:
            shapes.add(x.shape[0])
        return real(x, *rest)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    samples = LocalSampler(policy, bf16=True).sample(requests)
    assert shapes
    assert all(n % 16 == 0 for n in shapes)
    monkeypatch.setattr(llama, "STEP", 1)
    plain = LocalSampler(policy, bf16=True).sample(requests)
    same = sum(a.completion_ids == b.completion_ids for a, b in zip(samples, plain, strict=True))
    assert same > 24  # a product's last bf16 digit may differ with its shape
