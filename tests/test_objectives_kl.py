"""What the KL estimators estimate and where their gradients point: exact, by enumerating a 4-way softmax."""

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tutelage.objectives.advantages import kl_shaped_rewards
from tutelage.objectives.kl import k1, k2, k3, kl_loss

LOGITS = torch.tensor([0.3, -0.7, 1.1, 0.2], dtype=torch.float64)
REF = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64).log()


def exact(f: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The value of f(log π) and its gradient in the logits."""
    logits = LOGITS.clone().requires_grad_()
    value = f(logits.log_softmax(0))
    return value.detach(), torch.autograd.grad(value, logits)[0]


REVERSE_KL, REVERSE_GRAD = exact(lambda logp: (logp.exp() * (logp - REF)).sum())
_, FORWARD_GRAD = exact(lambda logp: (REF.exp() * (REF - logp)).sum())
PI = LOGITS.softmax(0)


def as_loss(estimator: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """E_{y∼π}[∇ estimator(y)], which averaging a loss over samples follows: the sampling is not differentiated."""
    return exact(lambda logp: (PI * estimator(logp, REF)).sum())[1]


@pytest.mark.parametrize("estimator", [k1, k3])
def test_unbiased_in_expectation(estimator: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert_close((PI * estimator(PI.log(), REF)).sum(), REVERSE_KL)


def test_k2_is_biased_and_k2_k3_are_never_negative() -> None:
    assert abs((PI * k2(PI.log(), REF)).sum() - REVERSE_KL) > 0.01
    assert (k2(PI.log(), REF) >= 0).all()
    assert (k3(PI.log(), REF) >= 0).all()
    assert (k1(PI.log(), REF) < 0).any()


def test_by_hand() -> None:
    logp, ref = torch.tensor([-1.0], dtype=torch.float64), torch.tensor([-3.0], dtype=torch.float64)
    assert_close(k1(logp, ref).item(), 2.0)
    assert_close(k2(logp, ref).item(), 2.0)
    assert_close(k3(logp, ref).item(), 0.1353352832366127 - 1 + 2)


def test_k3_keeps_its_digits_near_zero() -> None:
    logp = torch.tensor([-1.0], dtype=torch.float64)
    assert_close(k3(logp + 1e-6, logp), k2(logp + 1e-6, logp), rtol=1e-3, atol=0)


def test_k1_in_the_reward_is_the_reverse_kl_gradient() -> None:
    every = torch.ones(4, 1, dtype=torch.bool)
    rewards = kl_shaped_rewards(torch.zeros(4, dtype=torch.float64), PI.log()[:, None], REF[:, None], every, 1.0)
    _, ascent = exact(lambda logp: (PI * rewards[:, 0] * logp).sum())  # REINFORCE: E[R ∇ log π]
    assert_close(-ascent, REVERSE_GRAD)


def test_as_losses_only_k2_is_the_reverse_kl_gradient() -> None:
    assert_close(as_loss(k1), torch.zeros_like(LOGITS))
    assert_close(as_loss(k2), REVERSE_GRAD)
    assert_close(as_loss(k3), FORWARD_GRAD)
    assert (FORWARD_GRAD - REVERSE_GRAD).abs().max() > 0.01


@pytest.mark.parametrize(("estimator", "gradient"), [("k2", REVERSE_GRAD), ("k3", FORWARD_GRAD)])
def test_a_kl_loss_is_right_for_samples_of_another_policy(estimator: Literal["k2", "k3"], gradient: Tensor) -> None:
    """Expected over samples of an older policy, weighted as they come, the gradient is that of samples of today's."""
    older = torch.tensor([0.4, 0.1, 0.3, 0.2], dtype=torch.float64)
    every = torch.ones(4, dtype=torch.bool)
    _, found = exact(lambda logp: kl_loss(logp, older.log(), REF, every, estimator, weights=older))
    assert_close(found, gradient)


def test_a_kl_loss_by_hand() -> None:
    """Two tokens, of which one counts: ρ = e^0.5, k2 = ½·2², weight 3."""
    row = [torch.tensor([x, torch.nan], dtype=torch.float64) for x in (-1.0, -1.5, -3.0)]
    loss = kl_loss(*row, torch.tensor([True, False]), "k2", torch.tensor([3.0, 7.0], dtype=torch.float64))
    assert_close(loss.item(), math.exp(0.5) * 2 * 3)
