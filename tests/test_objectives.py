"""The objectives against numbers that a reader can check by hand, identities, and properties."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tutelage.objectives.advantages import (
    explained_variance,
    flat_groups,
    gae,
    group_relative,
    kl_shaped_rewards,
    leave_one_out,
    reward_to_go,
)
from tutelage.objectives.kl import AdaptiveKL, FixedKL, KLController, kl_loss
from tutelage.objectives.masked import keep, masked_mean, masked_var, whiten
from tutelage.objectives.policy import clipped_policy_loss, clipped_value_loss
from tutelage.objectives.reward import ranking_accuracy, ranking_loss
from tutelage.objectives.sft import nll_sum

torch.set_num_threads(1)
seeds = st.integers(0, 2**31)
quick = settings(max_examples=30, deadline=None)
GARBAGE = torch.tensor([math.nan, math.inf, -math.inf, 1e30], dtype=torch.float64)


def row(*xs: float) -> Tensor:
    return torch.tensor([xs], dtype=torch.float64)


def everywhere(x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def close(actual: Tensor, expected: Tensor | float, atol: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    assert_close(actual, expected.expand_as(actual), rtol=0, atol=atol)


def ragged(seed: int, n: int = 5, t: int = 7) -> tuple[Callable[[], Tensor], Tensor]:
    """A maker of (n, t) normals, and a right-padded mask with rows of 1 to t tokens."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(t) < torch.randint(1, t + 1, (n, 1), generator=g)
    return lambda: torch.randn(n, t, generator=g, dtype=torch.float64), mask


def spoiled(x: Tensor, mask: Tensor) -> Tensor:
    """x with nan, inf, -inf and huge numbers in turn wherever the mask is False."""
    return torch.where(mask, x, GARBAGE.repeat(x.numel())[: x.numel()].view_as(x))


# --- fixtures ---------------------------------------------------------------------------------------------------------

REWARDS, VALUES = row(-0.1, -0.05, -0.02, 1), row(0.2, 0.3, 0.5, 0.8)


def test_gae_fixture() -> None:
    advantages, returns = gae(REWARDS, VALUES, everywhere(REWARDS), 1.0, 0.95)
    close(advantages, row(0.566675, 0.5965, 0.47, 0.2))
    close(returns, row(0.766675, 0.8965, 0.97, 1.0))


def test_whitening_fixtures() -> None:
    advantages, mask = row(0.566675, 0.5965, 0.47, 0.2), everywhere(REWARDS)
    close(whiten(advantages, mask), row(0.693484, 0.884321, 0.074903, -1.652708), atol=5.1e-7)
    close(whiten(REWARDS, mask, shift_mean=False), row(-0.463251, -0.354185, -0.288746, 1.936182), atol=5.1e-7)


@pytest.mark.parametrize(("kl", "expected"), [(3.0, 0.148464), (9.0, 0.151536), (100.0, 0.151536), (6.0, 0.15)])
def test_adaptive_kl_fixture(kl: float, expected: float) -> None:
    controller: KLController = AdaptiveKL(kl_coef=0.15, target=6.0, horizon=10_000)
    assert controller.update(kl, 512) == pytest.approx(expected, abs=1e-12)
    assert controller.value == pytest.approx(expected, abs=1e-12)


def test_adaptive_kl_is_proportional_near_its_target() -> None:
    assert AdaptiveKL(1.0, 10.0, 100).update(11.0, 10) == pytest.approx(1 + 0.1 * 10 / 100)


def test_fixed_kl_stays() -> None:
    controller: KLController = FixedKL(0.02)
    assert controller.update(100.0, 512) == controller.value == 0.02


def test_policy_loss_at_ratio_e() -> None:
    zero = row(0.0)
    loss, stats = clipped_policy_loss(zero + 1, zero, zero + 1, everywhere(zero), 0.2)
    close(loss, -1.2)
    close(stats["ratio"], math.e)
    close(stats["approxkl"], 0.5)
    close(stats["clipfrac"], 1.0)


# --- masked -----------------------------------------------------------------------------------------------------------


@given(seeds)
@quick
def test_whiten_gives_mean_zero_and_variance_one(seed: int) -> None:
    new, mask = ragged(seed)
    x = 3 * new() + 5
    z = whiten(x, mask)
    close(masked_mean(z, mask), 0.0, atol=1e-9)
    close(masked_var(z, mask), 1.0, atol=1e-6)
    close(z[~mask], 0.0)
    kept = whiten(x, mask, shift_mean=False)
    close(kept[mask], z[mask] + masked_mean(x, mask), atol=1e-9)
    close(kept[~mask], 0.0)


def test_masked_moments_by_hand() -> None:
    x, mask = row(1, 3, math.inf), torch.tensor([[True, True, False]])
    close(masked_mean(x, mask), 2.0)
    close(masked_var(x, mask), 1.0)


# --- nothing leaks through a mask, into a value or a gradient ---------------------------------------------------------

ON_TOKENS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "masked_mean": (1, masked_mean),
    "masked_var": (1, masked_var),
    "whiten": (1, lambda x, m: (whiten(x, m) ** 3).sum()),
    "nll_sum": (1, nll_sum),
    "policy": (3, lambda a, b, c, m: clipped_policy_loss(a, b, c, m, 0.2)[0]),
    "policy, both clips": (
        3,
        lambda a, b, c, m: clipped_policy_loss(a, b, c, m, 0.2, cliprange_high=0.3, dual_clip=2.0, weights=a)[0],
    ),
    "kl loss": (3, lambda a, b, c, m: kl_loss(a, b, c, m, "k3")),
    "reward to go": (1, reward_to_go),
    "policy stats": (3, lambda a, b, c, m: torch.stack([*clipped_policy_loss(a, b, c, m, 0.2)[1].values()])),
    "value": (3, lambda a, b, c, m: clipped_value_loss(a, b, c, m, 0.2)[0]),
    "value stats": (3, lambda a, b, c, m: torch.stack([*clipped_value_loss(a, b, c, m, 0.2)[1].values()])),
    "rewards": (2, lambda a, b, m: kl_shaped_rewards(a[:, 0], a, b, m, 0.1)),
    "advantages": (2, lambda a, b, m: gae(a, b, m, 0.9, 0.8)[0]),
    "returns": (2, lambda a, b, m: gae(a, b, m, 0.9, 0.8)[1]),
}


@pytest.mark.parametrize("name", ON_TOKENS)
@given(seed=seeds)
@quick
def test_masked_out_values_do_not_leak(name: str, seed: int) -> None:
    arity, f = ON_TOKENS[name]
    new, mask = ragged(seed)
    clean = [new().requires_grad_() for _ in range(arity)]
    dirty = [spoiled(x.detach(), mask).requires_grad_() for x in clean]
    expected, actual = f(*clean, mask), f(*dirty, mask)
    close(actual, expected)
    if expected.requires_grad:
        expected.sum().backward()
        actual.sum().backward()
        for a, b in zip(clean, dirty, strict=True):
            if a.grad is not None:
                close(b.grad, a.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ON_TOKENS)
@given(seed=seeds)
@quick
def test_rows_may_be_permuted_and_padded(name: str, seed: int) -> None:
    arity, f = ON_TOKENS[name]
    new, mask = ragged(seed)
    xs = [new() for _ in range(arity)]
    out = f(*xs, mask)
    order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(seed))
    permuted = f(*(x[order] for x in xs), mask[order])
    close(permuted, out[order] if out.dim() == 2 else out)
    padded = f(*(torch.nn.functional.pad(x, (0, 3), value=7.0) for x in xs), torch.nn.functional.pad(mask, (0, 3)))
    close(padded[:, :-3] if out.dim() == 2 else padded, out)
    if out.dim() == 2:
        close(padded[:, -3:], 0.0)


# --- advantages -------------------------------------------------------------------------------------------------------


def test_shaped_rewards_by_hand() -> None:
    logprobs, ref = (
        torch.tensor([[-1.0, -2.0, -9.0], [-1.0, -1.0, -1.0]]),
        torch.tensor([[-2.0, -1.5, 0.0], [-1.0] * 3]),
    )
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards = kl_shaped_rewards(torch.tensor([5.0, 7.0]), logprobs, ref, mask, 0.1)
    close(rewards, torch.tensor([[-0.1, 0.05 + 5, 0.0], [0.0, 0.0, 7.0]]), atol=1e-6)


@given(seeds)
@quick
def test_shaped_rewards_sum_to_the_objective(seed: int) -> None:
    new, mask = ragged(seed)
    logprobs, ref, scores = new(), new(), new()[:, 0]
    rewards = kl_shaped_rewards(scores, logprobs, ref, mask, 0.3)
    close(rewards.sum(1), scores - 0.3 * keep(logprobs - ref, mask).sum(1))


@given(seeds)
@quick
def test_gae_at_one_one_is_reward_to_go_minus_value(seed: int) -> None:
    new, mask = ragged(seed)
    rewards, values = new(), new()
    advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
    to_go = keep(rewards, mask).flip(1).cumsum(1).flip(1)
    close(advantages, keep(to_go - values, mask))
    close(returns, keep(to_go, mask))


def test_gae_of_one_token() -> None:
    advantages, returns = gae(row(3), row(1), everywhere(row(0)), 0.9, 0.8)
    close(advantages, 2.0)
    close(returns, 3.0)


@given(seeds)
@quick
def test_gae_at_lambda_zero_is_the_td_error(seed: int) -> None:
    new, mask = ragged(seed)
    rewards, values = new(), new()
    v = keep(values, mask)
    advantages, _ = gae(rewards, values, mask, 0.9, 0.0)
    close(advantages[:, :-1], keep(rewards + 0.9 * v.roll(-1, 1) - v, mask)[:, :-1])
    close(advantages[:, -1], keep(rewards - v, mask)[:, -1])


@given(seeds, st.floats(0, 1), st.floats(0, 1))
@quick
def test_gae_is_the_discounted_sum_of_td_errors(seed: int, gamma: float, lam: float) -> None:
    new, mask = ragged(seed)
    rewards, values = new(), new()
    deltas, _ = gae(rewards, values, mask, gamma, 0.0)
    t = torch.arange(mask.shape[1])
    later = (t[:, None] - t[None, :]).clamp(min=0)  # [s, t] = s − t
    weights = torch.tensor(gamma * lam, dtype=torch.float64) ** later * (t[:, None] >= t[None, :])
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    close(advantages, keep(deltas @ weights, mask))
    close(returns, keep(advantages + values, mask))


@given(seeds)
@quick
def test_gae_rows_may_start_late(seed: int) -> None:
    new, mask = ragged(seed)
    rewards, values = new(), new()
    left = [torch.nn.functional.pad(x, (2, 0), value=7.0) for x in (rewards, values)]
    shifted, _ = gae(*left, torch.nn.functional.pad(mask, (2, 0)), 0.9, 0.8)
    close(shifted, torch.nn.functional.pad(gae(rewards, values, mask, 0.9, 0.8)[0], (2, 0)))


def test_credit_is_detached() -> None:
    x = REWARDS.clone().requires_grad_()
    assert not kl_shaped_rewards(x[:, 0], x, x, everywhere(x), 0.1).requires_grad
    assert not any(out.requires_grad for out in gae(x, x, everywhere(x), 1.0, 0.95))


# --- policy and value losses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),  # slope = d loss / d log π; zero exactly where clipping helps the policy
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 1.0, -1.1, -1.1),
        (1.5, 1.0, -1.2, 0.0),
        (0.5, 1.0, -0.5, -0.5),
        (1.5, -1.0, 1.5, 1.5),
        (0.5, -1.0, 0.8, 0.0),
    ],
)
def test_policy_loss_clips_one_side(ratio: float, advantage: float, loss: float, slope: float) -> None:
    logprobs, old = row(math.log(ratio)).requires_grad_(), row(0.0)
    actual, _ = clipped_policy_loss(logprobs, old, row(advantage), everywhere(old), 0.2)
    actual.backward()
    close(actual.detach(), loss)
    close(logprobs.grad, slope)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope"),
    [
        (1.0, 1.0, 3.0, 2.0, -2.0),
        (1.1, 1.0, 3.0, 0.5 * 1.9**2, -1.9),
        (2.0, 1.0, 3.0, 0.5 * 1.8**2, 0.0),  # moved towards the target further than allowed: no more pull
        (0.0, 1.0, 3.0, 0.5 * 3.0**2, -3.0),  # moved away: the whole error
    ],
)
def test_value_loss_clips_one_side(value: float, old: float, target: float, loss: float, slope: float) -> None:
    values = row(value).requires_grad_()
    actual, stats = clipped_value_loss(values, row(old), row(target), everywhere(values), 0.2)
    actual.backward()
    close(actual.detach(), loss)
    close(values.grad, slope)  # type: ignore[arg-type]
    close(stats["error"], (value - target) ** 2)
    assert stats["clipfrac"].item() == (slope == 0.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "how", "loss", "slope"),
    [
        (1.25, 1.0, {"cliprange_high": 0.28}, -1.25, -1.25),  # beyond 1.2, and free to grow
        (1.5, 1.0, {"cliprange_high": 0.28}, -1.28, 0.0),
        (0.5, -1.0, {"cliprange_high": 0.28}, 0.8, 0.0),  # the lower side is as it was
        (5.0, -1.0, {"dual_clip": 3.0}, 3.0, 0.0),  # else the loss would be 5, and grow with the ratio
        (2.0, -1.0, {"dual_clip": 3.0}, 2.0, 2.0),
        (5.0, 1.0, {"dual_clip": 3.0}, -1.2, 0.0),
        (1.1, 1.0, {"weights": 4.0}, -4.4, -4.4),
    ],
)
def test_policy_loss_with_other_clips_and_weights(
    ratio: float, advantage: float, how: dict[str, float], loss: float, slope: float
) -> None:
    logprobs, old = row(math.log(ratio)).requires_grad_(), row(0.0)
    options: dict[str, Any] = {k: row(v) if k == "weights" else v for k, v in how.items()}
    actual, stats = clipped_policy_loss(logprobs, old, row(advantage), everywhere(old), 0.2, **options)
    actual.backward()
    close(actual.detach(), loss)
    close(logprobs.grad, slope)  # type: ignore[arg-type]
    assert stats["clipfrac"].item() == (slope == 0.0)


# --- groups -----------------------------------------------------------------------------------------------------------


def test_leave_one_out_by_hand() -> None:
    """In any order of the groups, and of any sizes."""
    returns, group = torch.tensor([1.0, 5.0, 0.0, 7.0, 0.0], dtype=torch.float64), torch.tensor([4, 9, 4, 9, 4])
    close(leave_one_out(returns, group), torch.tensor([1.0, -2.0, -0.5, 2.0, -0.5]))


def test_group_relative_by_hand() -> None:
    scores, group = torch.tensor([1.0, 0.0, 0.0, 3.0, 3.0], dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1])
    close(
        group_relative(scores, group, scale=False), torch.tensor([2 / 3, -1 / 3, -1 / 3, 0.0, 0.0], dtype=torch.float64)
    )
    std = math.sqrt(1 / 3)  # of 1, 0, 0, with n - 1
    close(group_relative(scores, group)[:3], torch.tensor([2.0, -1.0, -1.0], dtype=torch.float64) / 3 / (std + 1e-4))
    assert (group_relative(scores, group)[3:] == 0).all()  # a group that agrees teaches nothing, exactly
    two = group_relative(torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([0, 0]))
    close(two, torch.tensor([-1.0, 1.0], dtype=torch.float64) / (2**0.5 + 1e-4))


def test_flat_groups_by_hand() -> None:
    """Of three groups one agrees, whatever the others average to."""
    assert flat_groups(torch.tensor([1.0, 2, 0, 2, 0, 3]), torch.tensor([7, 5, 7, 5, 8, 8])) == pytest.approx(1 / 3)
    assert flat_groups(torch.tensor([1.0, -1.0]), torch.tensor([0, 0])) == 0


def test_reward_to_go_by_hand() -> None:
    mask = torch.tensor([[True, True, True], [True, True, False]])
    close(reward_to_go(torch.tensor([[1.0, 2, 3], [1, 2, math.nan]]), mask), torch.tensor([[6.0, 5, 3], [3, 2, 0]]))


def test_rloo_is_unbiased_and_a_group_mean_is_not() -> None:
    """Two samples from a softmax over three, all nine pairs enumerated: E[A ∇ log π] against ∇ E[r]."""
    r, logits = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.2, -0.4, 0.9], requires_grad=True)
    (exact,) = torch.autograd.grad((logits.softmax(0) * r).sum(), logits)
    probs, logp = logits.detach().softmax(0), logits.log_softmax(0)
    for credit, share in ((leave_one_out, 1.0), (lambda x, g: group_relative(x, g, scale=False), 0.5)):
        expected = torch.zeros(3)
        for i, j in product(range(3), repeat=2):
            advantages = credit(r[[i, j]], torch.tensor([0, 0]))
            (gradient,) = torch.autograd.grad((advantages * logp[[i, j]]).mean(), logits, retain_graph=True)
            expected += probs[i] * probs[j] * gradient
        assert_close(expected, share * exact, rtol=1e-4, atol=1e-6)


@given(seeds)
@quick
def test_losses_are_sums_over_micro_batches(seed: int) -> None:
    new, mask = ragged(seed, n=6)
    xs = [new() for _ in range(3)]
    for loss in (clipped_policy_loss, clipped_value_loss):
        whole, stats = loss(*xs, mask, 0.2)
        parts = [loss(*(x[i : i + 2] for x in xs), mask[i : i + 2], 0.2) for i in (0, 2, 4)]
        close(torch.stack([part for part, _ in parts]).sum(), whole)
        for key, total in stats.items():
            close(torch.stack([s[key] for _, s in parts]).sum(), total)


def test_policy_gradient_at_ratio_one_is_reinforce() -> None:
    new, mask = ragged(0)
    logprobs, advantages = new().requires_grad_(), new()
    loss, stats = clipped_policy_loss(logprobs, logprobs, advantages, mask, 0.2)
    loss.backward()
    close(logprobs.grad, -keep(advantages, mask))  # type: ignore[arg-type]
    close(stats["ratio"], float(mask.sum()))
    close(stats["clipfrac"], 0.0)


# --- maximum likelihood and ranking -----------------------------------------------------------------------------------


def test_nll_sum_by_hand() -> None:
    close(nll_sum(row(-1, -2, math.nan), torch.tensor([[True, True, False]])), 3.0)


def test_equal_scores_cost_ln_2() -> None:
    close(ranking_loss(torch.zeros(4, dtype=torch.float64), torch.tensor([1, 2, 3, 4])), math.log(2))


@given(st.floats(-20, 20), st.floats(-20, 20))
@quick
def test_ranking_of_two_is_bradley_terry(a: float, b: float) -> None:
    scores = torch.tensor([a, b], dtype=torch.float64)
    close(ranking_loss(scores, torch.tensor([1, 2])), math.log1p(math.exp(b - a)), atol=1e-9)
    close(ranking_loss(scores, torch.tensor([2, 1])), math.log1p(math.exp(a - b)), atol=1e-9)


rankings = st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 4)), min_size=2, max_size=9)


@given(rankings)
@quick
def test_ranking_loss_and_accuracy_are_those_of_their_pairs(ranking: list[tuple[float, int]]) -> None:
    pairs = [(r, s) for r, i in ranking for s, j in ranking if i < j]
    scores = torch.tensor([score for score, _ in ranking], dtype=torch.float64)
    ranks = torch.tensor([rank for _, rank in ranking])
    loss = sum(math.log1p(math.exp(s - r)) for r, s in pairs) / max(len(pairs), 1)
    close(ranking_loss(scores, ranks), loss, atol=1e-9)
    correct, total = ranking_accuracy(scores, ranks)
    assert total.item() == len(pairs)
    assert correct.item() == sum(1.0 if r > s else 0.5 if r == s else 0.0 for r, s in pairs)


@given(rankings, st.floats(-100, 100))
@quick
def test_ranking_loss_ignores_a_shift_and_the_order_of_rows(ranking: list[tuple[float, int]], shift: float) -> None:
    ranks = torch.tensor([rank for _, rank in ranking])
    scores = torch.tensor([score for score, _ in ranking], dtype=torch.float64)
    close(ranking_loss(scores + shift, ranks), ranking_loss(scores, ranks), atol=1e-9)
    close(ranking_loss(scores.flip(0), ranks.flip(0)), ranking_loss(scores, ranks))
    close(ranking_loss(scores, 10 * ranks), ranking_loss(scores, ranks))


def test_an_all_tied_ranking_teaches_nothing() -> None:
    scores, ranks = torch.tensor([1.0, 2.0, 3.0], requires_grad=True), torch.tensor([2, 2, 2])
    loss = ranking_loss(scores, ranks)
    loss.backward()
    assert loss.item() == 0.0
    close(scores.grad, 0.0)  # type: ignore[arg-type]
    assert [x.item() for x in ranking_accuracy(scores, ranks)] == [0.0, 0]


def test_ranking_accuracy_by_hand() -> None:
    correct, total = ranking_accuracy(torch.tensor([3.0, 1.0, 1.0, 2.0]), torch.tensor([1, 2, 3, 3]))
    assert (correct.item(), total.item()) == (3.5, 5)  # 3 beats all three; 1 ties 1 (a half) and loses to 2
    good, bad = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    assert ranking_loss(good, torch.tensor([1, 2])) < ranking_loss(bad, torch.tensor([1, 2]))


def test_annotations_are_checked() -> None:
    with pytest.raises(Exception, match="mask"):
        masked_mean(torch.zeros(3), torch.ones(4, dtype=torch.bool))


def test_explained_variance_by_hand() -> None:
    """Returns 1, 2, 3 vary by 2/3; what values 1, 2, 4 miss of them, 0, 0, −1, by 1/3 − 1/9 = 2/9; 1 − 1/3 is left."""
    returns = torch.tensor([[1.0, 2.0, math.nan], [3.0, 9.0, 9.0]])
    values = torch.tensor([[1.0, 2.0, 7.0], [4.0, 1.0, math.inf]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert explained_variance(values, returns, mask) == pytest.approx(2 / 3)
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(torch.full_like(returns, 2.0), returns, mask) == pytest.approx(0)
    assert not math.isfinite(explained_variance(values, torch.ones(2, 3), mask))


@pytest.mark.parametrize("size", [2, 3, 5, 7, 16])
def test_a_group_that_agrees_gets_exactly_nothing(size: int) -> None:
    """Also where its mean is not what its sum over its size rounds to; the other group is as by hand."""
    for score in torch.randn(50, generator=torch.Generator().manual_seed(0)) * 5:
        scores = torch.cat([score.expand(size), torch.tensor([1.0, 0.0, 0.0])])
        group = torch.tensor([4] * size + [2] * 3)
        for advantages in (leave_one_out(scores, group), group_relative(scores, group)):
            assert (advantages[:size] == 0).all()
        assert leave_one_out(scores, group)[size:].tolist() == [1.0, -0.5, -0.5]
        assert flat_groups(scores, group) == 0.5
