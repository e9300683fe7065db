"""Ratings of many models from pairwise wins: P(i beats j) = σ(r_i − r_j) (Bradley and Terry 1952), ties half.

Every rating has a normal prior around their mean, of three nats: 95 % to 5 % against an average model. It is weak, and
keeps finite the rating of a model that never lost. Ratings are in nats of log-odds; 400 / ln 10 = 173.7 times as many
are points on Elo's scale.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from tutelage.stats.intervals import FEW, RARE, tail, whole
from tutelage.stats.logistic import Array, fit_logistic, resampled

PRIOR_SD = 3.0


class Game(NamedTuple):
    """One comparison: on which prompt, which two models, and the share that the first won."""

    prompt: Hashable
    first: str
    second: str
    share: float


def ratings(games: Sequence[Game], anchor: str, draws: int = 2000, seed: int = 0) -> dict[str, dict[str, float | None]]:
    """Each model's rating less the anchor's, with its 95 % interval by a percentile bootstrap over prompts.

    Args:
        games: comparisons; all of one prompt are resampled together.
        anchor: the model that the others' ratings are measured from.

    Returns:
        by model `mean`, `low`, `high`, `n` (comparisons) and `prompts`. Models that no chain of comparisons links to
        the anchor are left out, as nothing is known of them beside it. `low` and `high` are None where resamples cannot
        tell: with fewer than 30 prompts, and where fewer than five prompts speak against a model's (or the anchor's)
        winning always, or losing always, as only the prior then keeps its rating finite.

    Raises:
        ValueError: if the anchor is in no comparison.
    """
    linked = _linked(games, anchor)
    if len(linked) < 2:
        raise ValueError(f"{anchor!r} was compared with no other model, so nothing can be rated beside it")
    games = [game for game in games if game.first in linked]
    place = {model: i for i, model in enumerate(linked)}
    pairs = {pair: i for i, pair in enumerate(combinations(range(len(linked)), 2))}
    prompts: dict[Hashable, int] = {}
    number = [prompts.setdefault(game.prompt, len(prompts)) for game in games]
    wins, totals = (np.zeros((len(prompts), len(pairs))) for _ in range(2))
    for row, game in zip(number, games, strict=True):
        i, j = place[game.first], place[game.second]
        wins[row, pairs[min(i, j), max(i, j)]] += game.share if i < j else 1 - game.share
        totals[row, pairs[min(i, j), max(i, j)]] += 1
    x = np.zeros((len(pairs), len(linked)))
    for (i, j), row in pairs.items():
        x[row, i], x[row, j] = 1, -1
    weights = np.vstack([np.ones(len(prompts)), resampled(len(prompts), draws, seed)])
    theta = fit_logistic(x, weights @ wins, weights @ totals, PRIOR_SD)
    theta -= theta[:, [place[anchor]]]
    low, high = np.quantile(theta[1:], [tail(len(prompts)), 1 - tail(len(prompts))], axis=0)
    sides = {model: _sides(x[:, i], wins, totals) for model, i in place.items()}
    out: dict[str, dict[str, float | None]] = {}
    for model, i in place.items():
        seen = totals[:, x[:, i] != 0].sum(1)
        known = len(prompts) >= FEW and min(*sides[model], *sides[anchor]) >= RARE
        out[model] = {
            "mean": float(theta[0, i]), "low": float(low[i]) if known or model == anchor else None,
            "high": float(high[i]) if known or model == anchor else None, "n": whole(seen.sum()),
            "prompts": int((seen > 0).sum()),
        }  # fmt: skip
    return out


def _linked(games: Sequence[Game], anchor: str) -> list[str]:
    """The models that a chain of comparisons links to the anchor, in the order in which they come."""
    met = {anchor}
    while more := {model for game in games for model in game[1:3] if met.intersection(game[1:3])} - met:
        met |= more
    return [model for model in dict.fromkeys(model for game in games for model in game[1:3]) if model in met]


def _sides(column: Array, wins: Array, totals: Array) -> tuple[int, int]:
    """On how many prompts a model won something, and lost something."""
    won = wins @ (column > 0) + (totals - wins) @ (column < 0)
    lost = totals @ np.abs(column) - won
    return int((won > 0).sum()), int((lost > 0).sum())
