"""How a gold score rises and falls while a proxy is optimised: the two forms of Gao et al. 2022, fitted and tested.

With d = √KL(π‖π_init) in nats and R the gold score above the initial policy's, so R(0) = 0:

- best of n: R = d (α − β d), highest at d* = α / 2β;
- reinforcement learning: R = d (α − β ln d), highest at d* = e^(α/β − 1), where R = β d*.

Both are linear in α and β: least squares in (d, d²) or (d, d ln d). A form with two free numbers fits many curves, so
each is also fitted on the first half of the points, those of smaller d, and has to predict the rest. Intervals are
percentile bootstraps over prompts; points that share prompts, or samples, move together in each resample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tutelage.stats.intervals import FEW

Array = NDArray[np.float64]
Form = Literal["best_of_n", "rl"]
LEAST = 3  # points to fit two numbers to


def terms(form: Form, d: ArrayLike) -> Array:
    """(…, points, 2) what α and β are multiplied by: d, and −d² or −d ln d, which is 0 where d is."""
    at = np.asarray(d, dtype=float)
    log = np.log(np.where(at > 0, at, 1.0))
    return np.stack([at, -at * (at if form == "best_of_n" else log)], -1)


def coefficients(form: Form, d: ArrayLike, gold: ArrayLike) -> Array:
    """(…, 2) α and β by least squares, of (…, points) d and gold scores."""
    return (np.linalg.pinv(terms(form, d)) @ np.asarray(gold, dtype=float)[..., None])[..., 0]


def predicted(form: Form, ab: ArrayLike, d: ArrayLike) -> Array:
    """(…, points) gold scores at d, of (…, 2) α and β."""
    return (terms(form, d) @ np.asarray(ab, dtype=float)[..., None])[..., 0]


def peak(form: Form, ab: ArrayLike) -> tuple[Array, Array]:
    """d* and R* (…) of (…, 2) α and β: inf where the gold score never falls, 0 where it never rises."""
    alpha, beta = np.moveaxis(np.asarray(ab, dtype=float), -1, 0)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        if form == "best_of_n":
            top = np.maximum(alpha, 0.0) / (2 * beta)
            best = np.maximum(alpha, 0.0) ** 2 / (4 * beta)
        else:
            top = np.exp(alpha / beta - 1)
            best = beta * top
    return np.where(beta > 0, top, np.inf), np.where(beta > 0, best, np.inf)


def resamples(prompts: int, draws: int, seed: int) -> Array:
    """(draws, prompts) how often a bootstrap takes each prompt, as shares that sum to 1.

    Raises:
        ValueError: if there are fewer prompts than a bootstrap needs.
    """
    if prompts < FEW:
        raise ValueError(f"{prompts} prompts are too few for intervals over prompts; give {FEW} at least")
    picks = np.random.default_rng(seed).integers(prompts, size=(draws, prompts))
    counts = np.zeros((draws, prompts))
    np.add.at(counts, (np.arange(draws)[:, None], picks), 1.0)
    return counts / prompts


def interval(value: float, drawn: ArrayLike) -> dict[str, float | None]:
    """`mean`, and the middle 95 % of what resamples gave as `low` and `high`; None for what has no end."""
    low, high = np.quantile(np.asarray(drawn, dtype=float), [0.025, 0.975], method="nearest")
    return {name: float(x) if np.isfinite(x) else None for name, x in (("mean", value), ("low", low), ("high", high))}


def fit(form: Form, kl: ArrayLike, gold: ArrayLike, draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """A form's α and β, its peak, and how well the first half of the points predicts the rest.

    A point whose mean KL is not above 0 has no d and is left out. In a resample such a point has d = 0, where every
    form gives 0.

    Args:
        form: which of the two.
        kl: (points,) KL in nats if it is known, else (points, prompts), whose mean over prompts is the KL.
        gold: (points, prompts) gold scores above the initial policy's.

    Returns:
        `points` that were fitted and `left_out`; `alpha` and `beta`; `peak`: its `d` and `gold` (None where the score
        never falls), the `share` of resamples that have one, and whether it lies `inside` the measured d; `held_out`:
        see `held_out`, or None with fewer than 2 × 3 points.

    Raises:
        ValueError: if fewer than three points have a KL above 0, or prompts are too few.
    """
    values, nats = np.asarray(gold, dtype=float), np.asarray(kl, dtype=float)
    shares = resamples(values.shape[1], draws, seed)
    per_prompt = nats.ndim == 2
    mean = nats.mean(1) if per_prompt else nats
    kept = np.flatnonzero(mean > 0)[np.argsort(mean[mean > 0], kind="stable")]
    if len(kept) < LEAST:
        raise ValueError(
            f"{len(kept)} points have a KL above 0, and two coefficients need {LEAST} at least; give more policies"
        )
    d, r = np.sqrt(mean[kept]), values[kept].mean(1)
    r_drawn = shares @ values[kept].T
    kl_drawn = shares @ nats[kept].T if per_prompt else np.broadcast_to(mean[kept], r_drawn.shape)
    d_drawn = np.sqrt(np.maximum(kl_drawn, 0.0))
    ab, ab_drawn = coefficients(form, d, r), coefficients(form, d_drawn, r_drawn)
    (top, best), (top_drawn, best_drawn) = peak(form, ab), peak(form, ab_drawn)
    return {
        "form": form, "points": len(kept), "left_out": len(mean) - len(kept),
        "alpha": interval(ab[0], ab_drawn[:, 0]), "beta": interval(ab[1], ab_drawn[:, 1]),
        "peak": {
            "d": interval(float(top), top_drawn), "gold": interval(float(best), best_drawn),
            "share": float(np.isfinite(top_drawn).mean()), "inside": bool(top <= d[-1]),
        },
        "held_out": held_out(form, (d, d_drawn), (r, r_drawn)) if len(kept) >= 2 * LEAST else None,
    }  # fmt: skip


def held_out(form: Form, d: tuple[Array, Array], gold: tuple[Array, Array]) -> dict[str, Any]:
    """Root mean squared errors on the second half of the points, in gold's unit, of what the first half predicts.

    Args:
        d, gold: each (points,) in order of d, and (draws, points) of resamples.

    Returns:
        how many points were `fitted` and `tested`, and `from_d`, the first tested; `error` of the form; `line`: of a
        straight line through the origin; `last`: of staying at the last point fitted; `gain`: by how much the form's
        error is below the smaller of these two.
    """
    k = (len(d[0]) + 1) // 2
    errors = [_errors(form, at, of, k) for at, of in zip(d, gold, strict=True)]
    means, drawn = ({**e, "gain": np.minimum(e["line"], e["last"]) - e["error"]} for e in errors)
    rest = {name: interval(float(means[name]), drawn[name]) for name in means}
    return {"fitted": k, "tested": len(d[0]) - k, "from_d": float(d[0][k]), **rest}


def _errors(form: Form, d: Array, gold: Array, k: int) -> Mapping[str, Array]:
    """Errors (…) of (…, points), the first k of which are fitted."""
    x, y, x2, y2 = d[..., :k], gold[..., :k], d[..., k:], gold[..., k:]
    slope = (x * y).sum(-1, keepdims=True) / np.maximum((x * x).sum(-1, keepdims=True), 1e-12)
    guesses = {"error": predicted(form, coefficients(form, x, y), x2), "line": slope * x2, "last": y[..., -1:]}
    return {name: np.sqrt(((guess - y2) ** 2).mean(-1)) for name, guess in guesses.items()}


def best_choice(gold: ArrayLike, values: list[float] | None = None, draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Which of several choices has the highest mean gold score, and how sure that is.

    Args:
        gold: (choices, prompts) of the same prompts.
        values: (choices,) the numbers that were chosen between, if they are numbers.

    Returns:
        `choice`, its place; `shares`, in how many of the resamples each is best; with `values` also `low` and `high`,
        two of the values, between which the best is in 95 % of the resamples, and `spans_grid`, whether these are the
        least and the greatest of all.

    Raises:
        ValueError: if there are fewer prompts than a bootstrap needs.
    """
    scores = np.asarray(gold, dtype=float)
    winners = (resamples(scores.shape[1], draws, seed) @ scores.T).argmax(1)
    shares = np.bincount(winners, minlength=len(scores)) / draws
    out: dict[str, Any] = {"choice": int(scores.mean(1).argmax()), "shares": shares.tolist()}
    if values is not None:
        low, high = np.quantile(np.asarray(values, dtype=float)[winners], [0.025, 0.975], method="inverted_cdf")
        out |= {"low": float(low), "high": float(high), "spans_grid": bool(low == min(values) and high == max(values))}
    return out
