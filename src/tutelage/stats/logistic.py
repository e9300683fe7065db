"""Logistic regression of shares, many weightings at once, with a weak prior that keeps separable data finite."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
STEPS = 100  # of Newton; ten are usual
HALVINGS = 60


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

    def objective(at: Array) -> Array:
        u = at @ x.T
        likelihood = -(wins * np.logaddexp(0, -u) + (totals - wins) * np.logaddexp(0, u)).sum(1)
        return likelihood - (at**2).sum(1) / (2 * prior_sd**2)

    for _ in range(STEPS):
        p = logistic(theta @ x.T)
        gradient = (wins - totals * p) @ x - theta @ prior
        hessian = (totals * p * (1 - p) @ products).reshape(-1, *prior.shape) + prior
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        if np.abs(step).max() < 1e-9:
            break
        before = objective(theta)
        for _ in range(HALVINGS):  # a full step may overshoot where data are nearly separable, and never come back
            worse = objective(theta + step) < before - 1e-12 * np.abs(before)
            if not worse.any():
                break
            step[worse] /= 2
        theta += step
    return theta


def logistic(x: Array) -> Array:
    """σ(x) = 1 / (1 + e^−x)."""
    return 0.5 * (1 + np.tanh(x / 2))


def resampled(prompts: int, draws: int, seed: int) -> Array:
    """(draws, prompts) how often each prompt comes in each resample with replacement."""
    picks = np.random.default_rng(seed).integers(prompts, size=(draws, prompts))
    flat = (picks + prompts * np.arange(draws)[:, None]).ravel()
    return np.bincount(flat, minlength=draws * prompts).reshape(draws, prompts).astype(float)
