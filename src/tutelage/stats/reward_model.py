"""A reward model's scores beside labelers' rankings: accuracy in parts, calibration, and what the scores lean to.

What is counted are pairs of completions that a labeler ordered strictly. The model says of such a pair that the one
wins with probability σ(r_a − r_b) (Ouyang 2022, equation 1). Every interval is over prompts (`intervals.py`).

Accuracy does not say whether a model leans to length: where labelers prefer short completions, a perfect model of their
mean taste is right more often on pairs whose shorter completion was chosen, as the others are mostly labelers' errors.
But a sound model *expects* the longer completion to win as often as labelers choose it, however noisy they are. This is
compared.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tutelage.data.records import Ranking
from tutelage.stats.agreement import Measures, kendall_tau_b, scores_agreement
from tutelage.stats.intervals import between, estimate

Array = NDArray[np.float64]
Rate = dict[str, float]

TELLS = 0.02  # a difference of shares that is worth a word, once it is clear of noise
BINS = np.linspace(0.5, 1, 11)  # of the probability that the higher-scored completion wins
MARGINS = (0.5, 1.0, 2.0)  # nats between the scores of a pair: predicted to win with .62, .73, .88
MANY = 100  # values of a column that are reported one by one
FAR = 4  # rank levels between two completions, from which on they count together


@dataclass(frozen=True)
class Scored:
    """A ranking of k completions as a reward model reads it: their `scores`, their `lengths` in tokens, their scores
    once their last sentence is `repeated` (None where that is too long), and `groups`, what the row belongs to, as
    {"arm": "heldout_labelers"}."""

    ranking: Ranking
    scores: Sequence[float]
    lengths: Sequence[int]
    repeated: Sequence[float | None]
    groups: Mapping[str, str]


@dataclass(frozen=True)
class Pairs:
    """The m ordered pairs of many rankings, chosen and rejected: of which ranking each is (`row`) and of which prompt;
    by how much the chosen one scores higher (`margin`, nats), is longer (`longer`, tokens), is ranked higher (`apart`,
    levels) and was shown earlier (`earlier`, places; nan where that is not known)."""

    row: NDArray[np.int64]
    prompts: NDArray[np.int64]
    margin: Array
    longer: Array
    apart: Array
    earlier: Array

    @property
    def right(self) -> Array:
        """(m,) whether the chosen one scores higher; equal scores are half right."""
        return (np.sign(self.margin) + 1) / 2

    @property
    def confidence(self) -> Array:
        """(m,) the probability that the model gives to its own choice."""
        return sigmoid(np.abs(self.margin))


def sigmoid(x: Array) -> Array:
    """1 / (1 + e⁻ˣ), without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0, -x)))


def pairs_of(scored: Sequence[Scored]) -> Pairs:
    """All ordered pairs of rankings."""
    numbers: dict[Hashable, int] = {}
    rows = []
    for n, each in enumerate(scored):
        r = each.ranking
        prompt = numbers.setdefault(r.prompt.identity, len(numbers))
        levels = sorted(set(r.ranks))
        shown = None if r.order is None else [r.order.index(i) for i in range(len(r.order))]
        for w, x in r.pairs:
            earlier = float("nan") if shown is None else shown[x] - shown[w]
            apart = levels.index(r.ranks[x]) - levels.index(r.ranks[w])
            rows.append((n, prompt, each.scores[w] - each.scores[x], each.lengths[w] - each.lengths[x], apart, earlier))
    table = np.array(rows, dtype=float).reshape(-1, 6)
    return Pairs(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), *table[:, 2:].T)


def calibration(margins: ArrayLike) -> list[list[float]]:
    """[mean prediction, share that won, pairs] by bins of the probability that the higher-scored completion wins.

    Args:
        margins: (m,) score of the chosen completion less that of the rejected one, nats.
    """
    margin = np.asarray(margins, dtype=float)
    confidence, won = sigmoid(np.abs(margin)), (np.sign(margin) + 1) / 2
    place = _bins(confidence)
    inside = [place == k for k in range(len(BINS) - 1)]
    return [
        [round(float(confidence[i].mean()), 4), round(float(won[i].mean()), 4), int(i.sum())] for i in inside if i.any()
    ]


def _bins(confidence: Array) -> NDArray[np.int64]:
    return np.minimum(np.searchsorted(BINS, confidence, "right") - 1, len(BINS) - 2)


def calibration_error(pairs: Pairs, draws: int = 2000, seed: int = 0) -> Rate:
    """Expected calibration error: Σ over bins of (pairs in it / all) · |mean prediction − share that won| (Guo 2017).

    It is above 0 by chance alone, more so with few pairs, and the interval with it: whether a model is over-confident,
    the signed difference says.
    """
    bins, n = len(BINS) - 1, int(pairs.prompts.max()) + 1
    gap, count = np.zeros((n, bins)), np.zeros((n, bins))
    place = _bins(pairs.confidence)
    np.add.at(gap, (pairs.prompts, place), pairs.confidence - pairs.right)
    np.add.at(count, (pairs.prompts, place), 1)

    def error(times: Array) -> Array:
        return np.abs(times @ gap).sum(-1) / (times @ count).sum(-1)

    mean = float(error(np.ones(n)))
    rng = np.random.default_rng(seed)
    drawn = np.array([error(np.bincount(rng.integers(n, size=n), minlength=n).astype(float)) for _ in range(draws)])
    low, high = between(mean, drawn, n, n, (0.0, 1.0))
    return {"mean": mean, "low": low, "high": high, "pairs": len(pairs.row), "prompts": n}


def report(scored: Sequence[Scored], seed: int = 0, draws: int = 2000) -> dict[str, Any]:
    """What the scores of rankings say of a reward model.

    Returns:
        `by`: accuracy by group (as `arm`), `apart` (levels between the labelers' ranks), `score_margin` (nats between
        the scores), `length` (whether the chosen one is longer) and `shown` (whether it was shown earlier);
        `calibration_error`; `confidence`, the mean probability that it gives to its own choices; `over_confidence`, the
        same less the share of them that was right;
        `agreement`, as `scores_agreement` has it; `length`, `position` and `repetition`, as below; `not_measured`, why
        by name. A rate has `mean`, `low`, `high`, `pairs` and `prompts`.
    """
    p = pairs_of(scored)
    rankings, scores = [s.ranking for s in scored], [s.scores for s in scored]

    def accuracy(where: Array) -> Rate:
        return _rate(p.right[where], p.prompts[where], (0.0, 1.0), seed, draws)

    agreement = scores_agreement(rankings, scores, seed, draws)
    out: dict[str, Any] = {
        "by": parts(p, scored, accuracy),
        "calibration_error": calibration_error(p, draws, seed),
        "confidence": _rate(p.confidence, p.prompts, (0.0, 1.0), seed, draws),
        "over_confidence": _rate(p.confidence - p.right, p.prompts, (-1.0, 1.0), seed, draws),
        "agreement": agreement,
        "length": leaning(p, p.longer, seed, draws) | correlations(scored, seed, draws),
        "position": leaning(p, p.earlier, seed, draws),
        "repetition": repetition(scored, seed, draws),
    }
    why = {
        "agreement": None if "difference" in agreement else "no prompt has two labelers who order the same pair",
        "length": None if out["length"] else "no completion is longer than another",
        "position": None if out["position"] else "no ranking says in which `order` its completions were shown",
        "repetition": None if out["repetition"] else "no completion has room for its last sentence again",
    }
    for kind in {kind for s in scored for kind in s.groups} - out["by"].keys():
        why[kind] = f"more than {MANY} different values are no groups"
    return out | {"not_measured": {name: reason for name, reason in why.items() if reason}}


def parts(p: Pairs, scored: Sequence[Scored], accuracy: Callable[[Array], Rate]) -> dict[str, dict[str, Rate]]:
    """Accuracy by what a ranking belongs to, and by what its pairs are like; parts without a pair are left out."""
    out: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(kind for s in scored for kind in s.groups):
        names = [s.groups.get(kind) for s in scored]
        if len(set(names)) > MANY:
            continue
        of_pair = np.array([names[n] for n in p.row], dtype=object)
        out[kind] = {name: of_pair == name for name in dict.fromkeys(names) if name is not None}
    far = np.minimum(p.apart, FAR)
    out["apart"] = {f"{k}{' or more' if k == FAR else ''}": far == k for k in range(1, FAR + 1)}
    edges = [0.0, *MARGINS, np.inf]
    size = np.abs(p.margin)
    out["score_margin"] = {
        f"{low:g} to {high:g}" if np.isfinite(high) else f"{low:g} or more": (size >= low) & (size < high)
        for low, high in pairwise(edges)
    }
    out["length"] = {"longer": p.longer > 0, "shorter": p.longer < 0, "same": p.longer == 0}
    out["shown"] = {"earlier": p.earlier > 0, "later": p.earlier < 0}
    return {
        kind: rates
        for kind, masks in out.items()
        if (rates := {name: accuracy(mask) for name, mask in masks.items() if mask.any()})
    }


def leaning(p: Pairs, ahead: Array, seed: int = 0, draws: int = 2000) -> dict[str, Rate]:
    """How often the completion that is ahead (longer, or shown earlier) is `expected` to win, how often labelers
    have `chosen` it, and the `difference`: 0 for a model whose probabilities are right. Empty if none is ahead.

    Args:
        ahead: (m,) by how much the chosen one is ahead; pairs of 0 or nan do not count.
    """
    keep = ~np.isnan(ahead) & (ahead != 0)
    if not keep.any():
        return {}
    sign, prompts = np.sign(ahead[keep]), p.prompts[keep]
    expected, chosen = sigmoid(sign * p.margin[keep]), (sign + 1) / 2
    return {
        "expected": _rate(expected, prompts, (0.0, 1.0), seed, draws),
        "chosen": _rate(chosen, prompts, (0.0, 1.0), seed, draws),
        "difference": _rate(expected - chosen, prompts, (-1.0, 1.0), seed, draws),
    }


def correlations(scored: Sequence[Scored], seed: int = 0, draws: int = 2000) -> dict[str, Rate]:
    """Kendall's tau-b of completions' lengths with their scores and with the labeler's order, within each ranking, and
    its mean over rankings; `pairs` counts these. Labelers' noise makes theirs smaller, so compare `leaning` first."""
    rows = [
        (kendall_tau_b(s.scores, s.lengths), kendall_tau_b([-rank for rank in s.ranking.ranks], s.lengths))
        for s in scored
    ]
    taus = np.array(rows).reshape(-1, 2)
    keep = ~np.isnan(taus).any(1)
    if not keep.any():
        return {}
    prompts = [s.ranking.prompt.identity for s, kept in zip(scored, keep, strict=True) if kept]
    columns = {"score_correlation": taus[keep, 0], "labeler_correlation": taus[keep, 1]}
    return {name: _rate(values, prompts, (-1.0, 1.0), seed, draws) for name, values in columns.items()}


def repetition(scored: Sequence[Scored], seed: int = 0, draws: int = 2000) -> dict[str, Rate]:
    """By how many nats the score of a completion changes when its last sentence is repeated (`change`), and how often
    it rises (`raised`); `pairs` counts completions. Empty if none was read so."""
    rows = [
        (again - score, s.ranking.prompt.identity)
        for s in scored
        for score, again in zip(s.scores, s.repeated, strict=True)
        if again is not None
    ]
    if not rows:
        return {}
    changes, prompts = np.array([change for change, _ in rows]), [prompt for _, prompt in rows]
    raised = (np.sign(changes) + 1) / 2
    return {
        "change": _rate(changes, prompts, None, seed, draws),
        "raised": _rate(raised, prompts, (0.0, 1.0), seed, draws),
    }


def faults(measures: Mapping[str, Any]) -> dict[str, str]:
    """What a report finds wrong that is clear of noise and large enough to matter, in words by name."""
    over, length, place = (measures[name] for name in ("over_confidence", "length", "position"))
    out: dict[str, str] = {}
    if side := _clear(over):
        sure = measures["confidence"]["mean"]
        out["over-confident" if side > 0 else "under-confident"] = (
            f"it gives its choices a probability of {sure:.2f} on average, and {sure - over['mean']:.2f} of them are "
            "right"
        )
    for lean, ahead, names in (
        (length, "the longer completion", ("prefers length", "prefers brevity")),
        (place, "the completion that was shown first", ("prefers what was shown first", "prefers what was shown last")),
    ):
        if lean and (side := _clear(lean["difference"])):
            out[names[side < 0]] = (
                f"it expects {ahead} to win {lean['expected']['mean']:.0%} of its pairs, labelers chose it in "
                f"{lean['chosen']['mean']:.0%}"
            )
    if (again := measures["repetition"]) and again["change"]["low"] > 0:
        out["rewards repetition"] = (
            f"a repeated last sentence raises the score by {again['change']['mean']:.2f} on average"
        )
    return out


def _clear(rate: Rate) -> int:
    """1 or -1 if a difference is clear of noise and large enough for a word, else 0."""
    if abs(rate["mean"]) < TELLS:
        return 0
    return (rate["low"] > 0) - (rate["high"] < 0)


def beside_labelers(agreement: Measures) -> str | None:
    """How the model agrees with labelers beside how they agree with each other, in words; None if that is not known."""
    if "difference" not in agreement:
        return None
    gap = agreement["difference"]
    often = "more often than" if gap["low"] > 0 else "less often than" if gap["high"] < 0 else "about as often as"
    model, labeler = (agreement[name]["mean"] for name in ("model_shared", "labelers_shared"))
    return (
        f"on pairs that two labelers ordered, it agrees with one of them ({model:.2f}) {often} the other does "
        f"({labeler:.2f})"
    )


def _rate(values: Array, prompts: Iterable[Hashable], scale: tuple[float, float] | None, seed: int, draws: int) -> Rate:
    rate = estimate(values, prompts=list(prompts), scale=scale, draws=draws, seed=seed)
    return {"mean": rate["mean"], "low": rate["low"], "high": rate["high"], "pairs": rate["n"],
            "prompts": rate["prompts"]}  # fmt: skip
