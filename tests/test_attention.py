"""Our attention is attention: outputs and gradients are torch's own, for rows, trees and single queries."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch.testing import assert_close

from conftest import KINDS, tiny_model
from tutelage.models import attention as ours
from tutelage.models.forward import hidden_states
from tutelage.models.packing import TreeBatch, tree_batches

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
        out = function(module, *given, mask, **settings)[0].float()
        if real is not None:
            out = out * real[:, :, None, None]
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        (out * weights).sum().backward()
        found.append([out.detach(), *(x.grad.float() for x in given)])
    return found[0], found[1]


@pytest.mark.parametrize("kv_heads", [HEADS, 2])
@pytest.mark.parametrize(("b", "length"), [(1, 5), (3, 130), (2, 300)])
def test_rows(b: int, length: int, kv_heads: int) -> None:
    """bf16 differs from fp32 by its rounding alone, whether a row takes one block or several."""
    torch.manual_seed(0)
    module = SimpleNamespace(num_key_value_groups=HEADS // kv_heads, is_causal=True)
    inputs = [states(b, length, torch.bfloat16, heads) for heads in (HEADS, kv_heads, kv_heads)]
    with (
        mock.patch.object(ours, "BLOCK", 2**15),
        mock.patch.object(ours._Rows, "apply", wraps=ours._Rows.apply) as seen,
    ):
        found, expected = both(module, inputs, None, None, {})
    assert seen.called
    for a, e in zip(found, expected, strict=True):
        assert (a - e).norm() < 0.015 * e.norm()


def trees(sizes: list[tuple[int, list[int]]]) -> TreeBatch:
    """Trees by the lengths of their beginnings and of their branches."""
    rng, groups = Random(0), []
    for shared, lengths in sizes:
        start = [rng.randrange(2, 1000) for _ in range(shared)]
        branches = [[*start, i, *(rng.randrange(2, 1000) for _ in range(n - 1))] for i, n in enumerate(lengths)]
        groups.append(branches or [start])
    (batch,) = tree_batches(groups, 10**6, 0)
    return batch


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
def test_trees(sizes: list[tuple[int, list[int]]], kv_heads: int) -> None:
    """Exact in fp32; padding gives and gets nothing. What the mask allows is what the slots say."""
    torch.manual_seed(0)
    batch = trees(sizes)
    module = SimpleNamespace(num_key_value_groups=HEADS // kv_heads, is_causal=True)
    inputs = [states(*batch.ids.shape, heads=heads) for heads in (HEADS, kv_heads, kv_heads)]
    with mock.patch.object(ours, "BLOCK", 2**9):
        found, expected = both(module, inputs, batch.mask(), batch.branch >= 0, {"slots": batch.slots})
    for a, e in zip(found, expected, strict=True):
        assert_close(a, e, atol=1e-5, rtol=1e-5)
    assert all((x.transpose(1, 2)[batch.branch < 0] == 0).all() for x in found[1:])


@pytest.mark.parametrize("kv_heads", [HEADS, 2])
def test_one_query_beside_a_window_of_a_cache(kv_heads: int) -> None:
    torch.manual_seed(0)
    module = SimpleNamespace(num_key_value_groups=HEADS // kv_heads, is_causal=True)
    cache = torch.randn(2, 5, kv_heads, 40, WIDTH)
    key, value = cache[:, :3, :, 10:31]
    mask = torch.arange(21) >= torch.tensor([0, 20, 7])[:, None]
    with torch.inference_mode(), mock.patch.object(ours, "_one_query", wraps=ours._one_query) as seen:
        query = torch.randn(3, HEADS, 1, WIDTH)
        groups = [(slice(0, 2), 0, mask[:2]), (slice(2, 3), 7, None)]
        for given, windows in ((None, None), (mask[:, None, None], None), (mask[:, None, None], groups)):
            found = ours.attention(module, query, key, value, given, windows=windows)[0]
            assert_close(found, ours.sdpa_attention_forward(module, query, key, value, given)[0], atol=1e-6, rtol=1e-5)
    assert seen.call_count == 3


def test_what_it_does_not_know_is_torchs() -> None:
    """Dropout, position biases and the like, and fp32 rows, which torch's own computes as fast."""
    module = SimpleNamespace(num_key_value_groups=1, is_causal=True)
    fp32 = [states(2, 6) for _ in range(3)]
    bf16 = [x.detach().bfloat16() for x in fp32]
    one = [bf16[0][:, :, -1:], *bf16[1:]]
    unusual = [{"dropout": 0.5}, {"is_causal": False}, *({name: torch.zeros(2, HEADS, 6, 6)} for name in ours.UNUSUAL)]
    for inputs, mask, settings in [
        (fp32, None, {}),
        (one, torch.zeros(2, HEADS, 1, 6), {}),  # a mask that is added
        *((inputs, None, settings) for inputs in (bf16, one) for settings in unusual),
    ]:
        with mock.patch.object(ours, "sdpa_attention_forward", return_value="torch's") as seen:
            assert ours.attention(module, *inputs, mask, **settings) == "torch's", settings
        assert seen.call_args.args[5] == settings.get("dropout", 0.0)
    assert ours.attention(module, *bf16, None)[0].shape == (2, 6, HEADS, WIDTH)


def test_trees_in_bf16_differ_by_rounding_alone() -> None:
    torch.manual_seed(0)
    batch = trees([(130, [20, 7, 33]), (6, [2, 2, 7, 1])])
    module = SimpleNamespace(num_key_value_groups=1, is_causal=True)
    inputs = [states(*batch.ids.shape, dtype=torch.bfloat16) for _ in range(3)]
    found, expected = both(module, inputs, batch.mask(), batch.branch >= 0, {"slots": batch.slots})
    for a, e in zip(found, expected, strict=True):
        assert (a - e).norm() < 0.015 * e.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_models_under_autocast_are_as_with_torchs_own(kind: str) -> None:
    """Hidden states and gradients in bf16, each no further from fp32 than torch's own attention is, give or take."""
    model = tiny_model(kind, 320)
    ids = torch.randint(2, 320, (3, 40), generator=torch.Generator().manual_seed(0))

    def outcome(name: str, bf16: bool) -> torch.Tensor:
        model.set_attn_implementation(name)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            hidden = hidden_states(model, ids).float()
        weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
        (hidden * weights).sum().backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return torch.cat([hidden.detach().flatten(), *grads])

    exact = outcome("sdpa", False)
    theirs, mine = outcome("sdpa", True), outcome(ours.NAME, True)
    assert not torch.equal(theirs, mine)
    assert 0 < (mine - exact).norm() < 1.3 * (theirs - exact).norm()
