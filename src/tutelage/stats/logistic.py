"""Logistic regression of shares, many weightings at once, with a weak prior that keeps separable data finite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
STEPS = 100  # of Newton; ten are usual
SMALL, HALVINGS = 0.5, 60  # a longer step may overshoot where data are nearly separable, and never come back


def fit_logistic(x: Array, wins: Array, totals: Array, prior_sd: float) -> Array:
    """Maximise Σ_n wins_n ln σ(x_n·θ) + (totals_n − wins_n) ln σ(−x_n·θ) − |θ|² / (2 prior_sd²) by Newton's method.

    Args:
        x: (n, k) covariates.
        wins, totals: (draws, n) how often each was won, ties half, and out of how often.
        prior_sd: standard deviation of the normal prior of every coefficient.

    Returns:
        (draws, k) coefficients. The objective is strictly concave, so there is one maximum.
    """
    products = (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    prior = np.eye(x.shape[1]) / prior_sd**2
    theta = np.zeros((len(wins), x.shape[1]))
    if len(wins) > 1:  # the others are not far from the first
        theta += fit_logistic(x, wins[:1], totals[:1], prior_sd)

    def objective(at: Array) -> Array:
        u = at @ x.T  # ln σ(u) = u − ln(1 + e^u), and ln σ(−u) is the latter alone
        return (wins * u - totals * np.logaddexp(0, u)).sum(1) - (at**2).sum(1) / (2 * prior_sd**2)

    for _ in range(STEPS):
        p = logistic(theta @ x.T)
        gradient = (wins - totals * p) @ x - theta @ prior
        hessian = (totals * p * (1 - p) @ products).reshape(-1, *prior.shape) + prior
        step = np.asarray(np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0], dtype=np.float64)
        largest = np.abs(step).max()
        if largest < 1e-7:  # the next would be of its square
            return theta + step
        if largest > SMALL:
            step = _shortened(step, theta, objective)
        theta = theta + step
    return theta


def _shortened(step: Array, theta: Array, objective: Callable[[Array], Array]) -> Array:
    """The steps, those halved that do not lead upwards."""
    reached = objective(theta)
    for _ in range(HALVINGS):
        worse = objective(theta + step) < reached - 1e-12 * np.abs(reached)
        if not worse.any():
            break
        step[worse] /= 2
    return step


def logistic(x: Array) -> Array:
    """σ(x) = 1 / (1 + e^−x)."""
    return 0.5 * (1 + np.tanh(x / 2))


def resampled(prompts: int, draws: int, seed: int) -> Array:
    """(draws, prompts) how often each prompt comes in each resample with replacement."""
    picks = np.random.default_rng(seed).integers(prompts, size=(draws, prompts))
    flat = (picks + prompts * np.arange(draws)[:, None]).ravel()
    return np.bincount(flat, minlength=draws * prompts).reshape(draws, prompts).astype(float)
