"""Attention for transformers' modules is attention: outputs and gradients are torch's own, for rows and trees."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch.testing import assert_close

from conftest import KINDS, tiny_model
from tutelage.models.cpu import attention as ours
from tutelage.models.cpu import kernels
from tutelage.models.forward import hidden_at
from tutelage.models.packing import MicroBatch, TreeBatch, tree_batches

HEADS, WIDTH = 4, 8


def states(b: int, length: int, dtype: torch.dtype = torch.float32, heads: int = HEADS) -> torch.Tensor:
    """(b, h, l, d) as a model makes it: heads beside each other, then transposed."""
    return torch.randn(b, length, heads, WIDTH).to(dtype).transpose(1, 2).requires_grad_()


def both(
    module: SimpleNamespace, inputs: list[torch.Tensor], mask: torch.Tensor | None, real: torch.Tensor | None, how: dict
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Output and gradients, ours and torch's own in fp32, of a random projection of the outputs at real tokens."""
    found = []
    for function, settings in ((ours.attention, how), (ours.sdpa_attention_forward, {})):
        mine = function is ours.attention
        given = [x.detach().to(x.dtype if mine else torch.float32).requires_grad_() for x in inputs]
        with mock.patch.object(kernels._Attention, "apply", wraps=kernels._Attention.apply) as seen:
            out = function(module, *given, mask, **settings)[0].float()
        assert seen.called == (mine and kernels.available())
        if real is not None:
            out = out * real[:, :, None, None]
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        (out * weights).sum().backward()
        found.append([out.detach(), *(x.grad.float() for x in given)])
    return found[0], found[1]


def assert_alike(found: list[torch.Tensor], expected: list[torch.Tensor], dtype: torch.dtype) -> None:
    """In fp32 to the last digits; bf16 differs from it by its rounding alone."""
    for a, e in zip(found, expected, strict=True):
        if dtype == torch.float32:
            assert_close(a, e, atol=1e-5, rtol=1e-5)
        assert (a - e).norm() < 0.015 * e.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [HEADS, 2])
@pytest.mark.parametrize(("b", "length"), [(1, 5), (3, 130), (2, 300)])
def test_rows(b: int, length: int, kv_heads: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = SimpleNamespace(num_key_value_groups=HEADS // kv_heads, is_causal=True)
    inputs = [states(b, length, dtype, heads) for heads in (HEADS, kv_heads, kv_heads)]
    assert_alike(*both(module, inputs, None, None, {}), dtype)


def trees(sizes: list[tuple[int, list[int]]]) -> TreeBatch:
    """Trees by the lengths of their beginnings and of their branches."""
    rng, groups = Random(0), []
    for shared, lengths in sizes:
        start = [rng.randrange(2, 1000) for _ in range(shared)]
        branches = [[*start, i, *(rng.randrange(2, 1000) for _ in range(n - 1))] for i, n in enumerate(lengths)]
        groups.append(branches or [start])
    (batch,) = tree_batches(groups, 10**6, 0)
    return batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [HEADS, 2])
@pytest.mark.parametrize(
    "sizes",
    [
        [(9, [4, 4, 4])],
        [(3, [1, 5]), (6, [2, 2, 7, 1]), (1, [3])],
        [(140, [20] * 3)],
        [(4, []), (2, [])],
        [(0, [3, 4])],
    ],
)
def test_trees(sizes: list[tuple[int, list[int]]], kv_heads: int, dtype: torch.dtype) -> None:
    """Padding gives and gets nothing. What the mask allows is what the cuts say."""
    torch.manual_seed(0)
    batch = trees(sizes)
    module = SimpleNamespace(num_key_value_groups=HEADS // kv_heads, is_causal=True)
    inputs = [states(*batch.ids.shape, dtype, heads) for heads in (HEADS, kv_heads, kv_heads)]
    found, expected = both(module, inputs, batch.mask(), batch.branch >= 0, {"trees": batch.padded_trees()})
    assert_alike(found, expected, dtype)
    assert all((x.transpose(1, 2)[batch.branch < 0] == 0).all() for x in found[1:])


def test_what_it_does_not_know_is_torchs() -> None:
    """Dropout, position biases and the like, masks that are added, queries beside a cache, fp64."""
    module = SimpleNamespace(num_key_value_groups=1, is_causal=True)
    rows = [states(2, 6).detach() for _ in range(3)]
    one = [rows[0][:, :, -1:], *rows[1:]]
    unusual = [{"dropout": 0.5}, {"is_causal": False}, *({name: torch.zeros(2, HEADS, 6, 6)} for name in ours.UNUSUAL)]
    for inputs, mask, settings in [
        ([x.double() for x in rows], None, {}),
        (one, None, {}),
        (one, torch.zeros(2, HEADS, 1, 6), {}),
        *((rows, None, settings) for settings in unusual),
    ]:
        with mock.patch.object(ours, "sdpa_attention_forward", return_value="torch's") as seen:
            assert ours.attention(module, *inputs, mask, **settings) == "torch's", settings
        assert seen.call_args.args[5] == settings.get("dropout", 0.0)
    assert ours.attention(module, *rows, None)[0].shape == (2, 6, HEADS, WIDTH)


@pytest.mark.parametrize("kind", KINDS)
def test_models_under_autocast_are_as_with_torchs_own(kind: str) -> None:
    """Hidden states and gradients in bf16, each no further from fp32 than torch's own attention is, give or take."""
    model = tiny_model(kind, 320)
    ids = torch.randint(2, 320, (3, 40), generator=torch.Generator().manual_seed(0))
    batch = MicroBatch([0, 1, 2], ids, torch.tensor([40, 40, 40]))
    row, column = torch.ones_like(ids).nonzero(as_tuple=True)

    def outcome(name: str, bf16: bool) -> torch.Tensor:
        model.set_attn_implementation(name)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            hidden = hidden_at(model, batch, row, column).float()
        weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
        (hidden * weights).sum().backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return torch.cat([hidden.detach().flatten(), *grads])

    exact = outcome("sdpa", False)
    assert (outcome(ours.NAME, False) - exact).norm() < 1e-5 * exact.norm()
    theirs, mine = outcome("sdpa", True), outcome(ours.NAME, True)
    assert not torch.equal(theirs, mine)
    assert 0 < (mine - exact).norm() < 1.3 * (theirs - exact).norm()
