"""Win rates, ratings and rates of faults from judgments, with 95 % intervals over prompts (ties count half).

The paper's protocol (section 3.6): every model against the SFT baseline, judged by held-out labelers; Likert scores and
flags beside that. What each figure means, and when not to trust it: docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.data.judgments import FAULTS, LABELERS, read_judgments
from tutelage.runs import inputs_of, open_run
from tutelage.settings.evaluation import EvaluateConfig
from tutelage.stats.bradley_terry import Game, ratings
from tutelage.stats.intervals import estimate, for_other_labelers
from tutelage.stats.length_control import length_controlled
from tutelage.terminal import listed, short

WINS = "wins."
LIKERT = (1, 7)
Row = dict[str, Any]


def against(rows: Sequence[Row], baseline: str) -> list[Row]:
    """The rows as comparisons with one baseline: those of another that compare it with this one are turned round."""
    turned = []
    for row in rows:
        if row["baseline"] == baseline:
            turned.append(row)
        elif own := row["models"].get(baseline):
            other = (row["models"].get(row["baseline"]) or {}) | {
                "wins": {judge: 1 - share for judge, share in own["wins"].items()},
                "votes": [vote | {"share": 1 - vote["share"]} for vote in own["votes"]],
            }
            models = {row["baseline"]: other, baseline: own | {"wins": {}, "votes": []}}
            turned.append(row | {"baseline": baseline, "models": models})
    return turned


@dataclass(frozen=True)
class Judged:
    """Judgments against one baseline, all judgments there are, and the rates that they give."""

    rows: list[Row]
    every: list[Row]
    baseline: str
    draws: int
    seed: int

    def rate(self, key: str, name: str, use_case: str | None = None) -> dict[str, float]:
        """The mean of a model's verdicts, with its interval over prompts; nothing if there are none."""
        rows = self.rows if key.startswith(WINS) else self.every
        rows = [r for r in rows if use_case is None or r["use_case"] == use_case]
        if name == self.baseline and key.startswith(WINS):  # against itself: half, by definition
            return {"mean": 0.5, "low": 0.5, "high": 0.5, "n": len(rows), "prompts": len({r["id"] for r in rows})}
        judged = [(r["id"], value) for r in rows if (value := _value(r, name, key)) is not None]
        return self._estimate(judged, (0, 1))

    def gain(self, key: str, name: str) -> dict[str, float]:
        """The paired difference to the baseline's greedy answers, prompt by prompt."""
        pairs = [(r["id"], _value(r, name, key), _value(r, f"{self.baseline}_greedy", key)) for r in self.rows]
        both = [(i, mine - theirs) for i, mine, theirs in pairs if mine is not None and theirs is not None]
        return self._estimate(both, (-1, 1))

    def of_arm(self, arm: str, judge: str, name: str) -> dict[str, float]:
        """The win rate by the votes of one arm of labelers: of each row their mean."""
        judged = []
        for row in self.rows:
            votes = row["models"].get(name, {}).get("votes", ())
            if shares := [v["share"] for v in votes if v["judge"] == judge and v["arm"] == arm]:
                judged.append((row["id"], sum(shares) / len(shares)))
        return self._estimate(judged, (0, 1))

    def for_other_labelers(self, judge: str, name: str) -> dict[str, float]:
        """The win rate with an interval for other labelers, too, by the votes that name theirs. What has no votes, as
        equal answers, is nobody's."""
        votes: list[tuple[float, Any, str | None]] = []
        for row in self.rows:
            share = _value(row, name, WINS + judge)
            own = [v for v in row["models"].get(name, {}).get("votes", ()) if v["judge"] == judge]
            if share is not None and name != self.baseline:
                votes += [(v["share"], row["id"], v["labeler"]) for v in own] or [(share, row["id"], None)]
        return for_other_labelers(*zip(*votes, strict=True)) if votes else {}

    def quality(self, name: str) -> dict[str, float]:
        """The mean Likert score of a model's answers: of each answer the mean over its labelers."""
        scores = [
            (row["id"], [r["quality"] for r in rated if r["quality"] is not None]) for row, rated in self._rated(name)
        ]
        return self._estimate([(i, sum(own) / len(own)) for i, own in scores if own], LIKERT)

    def flagged(self, flag: str, name: str) -> dict[str, float]:
        """How often a flag was set for a model's answers: of each answer the share of its labelers."""
        rates = [(row["id"], sum(flag in r["flags"] for r in rated) / len(rated)) for row, rated in self._rated(name)]
        return self._estimate(rates, (0, 1))

    def _rated(self, name: str) -> list[tuple[Row, list[Row]]]:
        return [(row, rated) for row in self.every if (rated := row["models"].get(name, {}).get("ratings"))]

    def length_controlled(self, judge: str, name: str) -> dict[str, float]:
        """The win rate that equally long answers would have, by `length_controlled`."""
        both = []
        for row in self.rows:
            share = _value(row, name, WINS + judge)
            lengths = [row["models"].get(n, {}).get("length") for n in (name, self.baseline)]
            if share is not None and None not in lengths and name != self.baseline:
                both.append((share, lengths[0] - lengths[1], row["id"]))
        shares, differences, prompts = zip(*both, strict=True) if both else ((), (), ())
        return length_controlled(shares, differences, prompts, self.draws, self.seed)

    def ratings(self, judge: str) -> dict[str, dict[str, float | None]]:
        """Bradley–Terry ratings beside the baseline's, by all comparisons; nothing for fewer than three models."""
        games = [
            Game(row["id"], name, row["baseline"], of["wins"][judge])
            for row in self.every
            for name, of in row["models"].items()
            if judge in of["wins"] and name != row["baseline"]
        ]
        models = {model for game in games for model in (game.first, game.second)}
        if len(models) < 3 or self.baseline not in models:
            return {}
        return ratings(games, self.baseline, self.draws, self.seed)

    def _estimate(self, judged: Sequence[tuple[Any, float]], scale: tuple[float, float]) -> dict[str, float]:
        if not judged:
            return {}
        prompts, values = [i for i, _ in judged], [value for _, value in judged]
        return estimate(values, prompts=prompts, scale=scale, draws=self.draws, seed=self.seed)


def _value(row: Row, name: str, key: str) -> float | None:
    """What a judgment says of a model's answer: `wins.JUDGE`, or one of `FAULTS`."""
    verdict = row["models"].get(name, {})
    if key.startswith(WINS):
        return verdict.get("wins", {}).get(key.removeprefix(WINS))
    return verdict.get(key)


def _all(rows: Sequence[Row], what: str, key: str) -> list[Any]:
    """All arms of votes, or flags of ratings, that the judgments name."""
    items = (item.get(key) for row in rows for of in row["models"].values() for item in of[what])
    values = (value for item in items if item for value in ([item] if isinstance(item, str) else item))
    return list(dict.fromkeys(values))


def without_empty(rates: Mapping[str, Any]) -> dict[str, Any]:
    """The rates that something is known of."""
    return {name: rate for name, rate in rates.items() if rate}


def open_judged(config: EvaluateConfig) -> Judged:
    """The judgments that the settings name.

    Raises:
        ValueError: if they cannot be read, or compare nobody with the baseline.
    """
    rows = read_judgments(config.judgments, several=config.baseline is not None)
    baseline = config.baseline or rows[0]["baseline"]
    turned = against(rows, baseline)
    if not turned:
        names = sorted({name for row in rows for name in (row["baseline"], *row["models"])})
        raise ValueError(f"baseline={short(baseline)}: no judgment compares it with another; there are {listed(names)}")
    return Judged(turned, rows, baseline, config.draws, config.seed)


def run(config: EvaluateConfig) -> None:
    """Write the rates into done.json: `win_rate` by the judge that counts (`labelers`, if they judged),
    `JUDGE_win_rate` by others, and of the one that counts by use case, by arm of labelers, for other labelers and at
    equal length;
    `ratings` of three models or more; `likert` and `flags` of people's ratings; each of `FAULTS`.

    `greedy_gain` is the paired difference of win rates, prompt by prompt, between a model's greedy answers and the
    baseline's greedy answers: what is left of a gain once sharpening is taken out.
    """
    opened = open_run("evaluate", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    judged = open_judged(config)
    rows, every = judged.rows, judged.every
    names = list({name: None for row in every for name in row["models"]})  # people may not have judged all of them yet
    known = {judge: None for row in every for of in row["models"].values() for judge in of["wins"]}
    judges = [LABELERS] * (LABELERS in known or not known) + [judge for judge in known if judge != LABELERS]
    first = judges[0]
    opened.begin(f"{len(every):,} judgments of {', '.join(names)} against {judged.baseline}")
    if not any(of["wins"] for row in rows for name, of in row["models"].items() if name != judged.baseline):
        opened.warn(f"no model has won or lost against {judged.baseline}: nobody has compared them")
    by_use_case = {
        use_case: {n: judged.rate(WINS + first, n, use_case) for n in names}
        for use_case in sorted({r["use_case"] for r in rows if r["use_case"]})
    }
    explained = {n: [own for r in every if (own := r["models"].get(n, {}).get("parts"))] for n in names}
    parts = {
        n: {k: float(np.mean([p[k] for p in of if k in p])) for k in dict.fromkeys(k for p in of for k in p)}
        for n, of in explained.items()
    }
    greedy = [n for n in names if n.endswith("_greedy") and n != f"{judged.baseline}_greedy"]
    gains = {n: {judge: judged.gain(WINS + judge, n) for judge in judges} for n in greedy}
    keys = {judge: f"{judge}_win_rate" if judge != first else "win_rate" for judge in judges}
    arms, flags = _all(every, "votes", "arm"), _all(every, "ratings", "flags")
    opened.finish(
        prompts=len({row["id"] for row in rows}),
        baseline=judged.baseline,
        judges=judges,
        greedy_gain={n: by_judge for n, by_judge in gains.items() if by_judge[first]},
        **{key: {n: judged.rate(WINS + judge, n) for n in names} for judge, key in keys.items()},
        win_rate_by_use_case=by_use_case,
        win_rate_by_arm={arm: without_empty({n: judged.of_arm(arm, first, n) for n in names}) for arm in arms},
        win_rate_for_other_labelers=without_empty({n: judged.for_other_labelers(first, n) for n in names}),
        length_controlled_win_rate=without_empty({n: judged.length_controlled(first, n) for n in names}),
        ratings=judged.ratings(first),
        likert=without_empty({n: judged.quality(n) for n in names}),
        flags={flag: without_empty({n: judged.flagged(flag, n) for n in names}) for flag in flags},
        parts=parts,
        **{fault: {n: judged.rate(fault, n) for n in names} for fault in FAULTS},
    )
