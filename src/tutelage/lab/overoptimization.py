"""Over-optimisation: what a gold score does while a proxy of it is optimised (Gao et al. 2022).

The initial policy writes N samples of each prompt, and choosing the best of n by the proxy gives a curve over n.
Policies along an `online` run with `policy_every`, or those of a sweep, give curves over KL. Scores are recentred
prompt by prompt so that the initial policy's mean is 0; gold is divided by the standard deviation of its samples.

    tutelage overoptimize --policy runs/sft/model --proxies rm=runs/reward/model --gold world \
        --prompts runs/world/prompts_test.jsonl --curves rl=runs/ppo --output runs/overoptimization

Differs from the paper: the best of n has two KLs, the usual bound, whose root is the d that is fitted, and the bound
lowered by equal scores; each form has to predict points that it was not fitted to.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.data.datasets import read_prompts
from tutelage.data.judgments import LABELERS, read_judgments
from tutelage.data.records import Prompt
from tutelage.data.strict_json import dumps
from tutelage.lab.curves import Bootstrap, best_of_n_curve, best_run, frontier, gains_of, policies_curve
from tutelage.lab.policies import Point, policies_of
from tutelage.lab.scoring import GOLD, Column, Judges, open_judges
from tutelage.models.loading import load_policy
from tutelage.models.tokens import load_tokenizer, require_same_tokens, same_reading
from tutelage.rewards.function import sources_of
from tutelage.runs import Run, dropped, inputs_of, open_run
from tutelage.sampling.completions import Writer, complete, fits, log_ratios
from tutelage.settings.common import is_hub_id
from tutelage.settings.overoptimization import OveroptimizeConfig
from tutelage.settings.rewards import RewardModelReward
from tutelage.stats.intervals import FEW

Array = NDArray[np.float64]
Scores = dict[str, Array]
SAMPLES_UNIT = "standard deviations of the initial policy's samples"
VOTES_UNIT = "share of votes won from the baseline, less one half"
ENOUGH = 0.5  # of a prompt's samples that must be scored, or it is left out
BLIND = 0.5  # warn where a proxy scores all samples alike on more than this share of the prompts


def run(config: OveroptimizeConfig) -> None:
    """Write done.json with all curves, and curves.csv with their points.

    Raises:
        ValueError: if too few prompts can be used, gold cannot judge them or tells no samples apart, or a folder holds
            no policy of the same tokens.
    """
    opened = open_run("overoptimize", config, inputs(config))
    if opened is None:
        return
    curves = {name: policies_of(Path(folder)) for name, folder in config.curves.items()}
    tokenizer = load_tokenizer(config.policy)
    writer = Writer("initial", load_policy(config.policy, tokenizer), tokenizer)
    loaded = read_prompts(config.prompts, columns=True)
    different = list({p.identity: p for p in loaded.records}.values())
    judges = open_judges(config, tokenizer, writer.policy, different)
    asked, lost = usable(config, different, writer, judges)
    judgments(config, asked)  # too few are met now, not after an hour
    unused = dropped({**loaded.dropped, "of the same text": len(loaded.records) - len(different), **lost})
    number = sum(len(points) for _, points in curves.values())
    opened.begin(
        f"{len(asked)} prompts, {config.samples:,} samples of each, {number} policies on {len(curves)} curves; "
        f"proxies: {', '.join(judges.names)}; gold: {config.gold or 'none'}",
        lost=unused,
    )
    lab = Lab(config, opened, writer, judges)
    samples, prompts, unscored = lab.sample(asked)
    measured = {
        name: [lab.measure(f"policy-{c}-{i}", point, prompts) for i, point in enumerate(points)]
        for c, (name, (_, points)) in enumerate(curves.items())
    }
    study = Study(
        prompts, samples, judges.names, judgments(config, prompts), Bootstrap(config.draws, config.seed, opened.warn)
    )
    results = study.results(curves, measured)
    write_csv(opened.folder / "curves.csv", results)
    opened.finish(
        prompts=len(prompts), samples=study.number, dropped=dropped({**unused, "prompts not scored": unscored}),
        initial=study.initial(), gold_unit=study.unit_name, **results,
    )  # fmt: skip


def inputs(config: OveroptimizeConfig) -> dict[str, Path]:
    """The files and folders that are read."""
    gold: dict[str, Path] = {}
    if config.gold_judgments:
        gold["gold"] = Path(config.gold_judgments)
    elif isinstance(config.gold_reward, RewardModelReward) and not is_hub_id(config.gold_reward.model):
        gold["gold"] = Path(config.gold_reward.model)
    functions = dict(config.proxies) | ({GOLD: config.gold_reward} if config.gold_reward else {})
    return inputs_of(config, *config.INPUTS) | gold | sources_of(functions)


def usable(
    config: OveroptimizeConfig, prompts: Sequence[Prompt], writer: Writer, judges: Judges
) -> tuple[list[Prompt], dict[str, int]]:
    """The first `limit` prompts that leave room for a completion, and how many are too long.

    Raises:
        ValueError: if they are too few for intervals.
    """
    new = config.sampler.max_new_tokens
    kept = [p for p in prompts if fits(writer, p, new)]
    for model in judges.proxies.models.values():
        if model.reads(writer.tokenizer):
            room = [len(writer.prompt_ids(p)) + new <= model.context for p in kept]
        else:
            room = model.leaves_room(kept, new) if kept else []
        kept = [p for p, ok in zip(kept, room, strict=True) if ok]
    if min(len(kept), config.limit) < FEW:
        raise ValueError(
            f"{config.prompts}: {len(kept)} of {len(prompts)} different prompts leave room for {new} new tokens, and "
            f"limit={config.limit} takes {min(len(kept), config.limit)}; intervals need {FEW}: give more prompts, or "
            "change limit or sampler.max_new_tokens"
        )
    return kept[: config.limit], {"too long": len(prompts) - len(kept)}


@dataclass(frozen=True)
class Lab:
    """What samples and scores; all that it makes is kept by the run until that is done."""

    config: OveroptimizeConfig
    opened: Run
    writer: Writer
    judges: Judges

    def sample(self, prompts: Sequence[Prompt]) -> tuple[Scores, list[Prompt], int]:
        """The initial policy's samples, scored: by judge (prompts, N), the prompts, and how many others there are, of
        whose samples fewer than half are scored by every judge.

        N is what the prompt with the fewest scored samples has.

        Raises:
            ValueError: if too few prompts are left for intervals.
        """
        columns = []
        for i in self.opened.track(range(len(prompts))):
            columns.append(self.opened.once(f"samples-{i}", partial(self._samples_of, prompts[i])))
        names = [*columns[0]]  # what was kept has them in another order
        rows = [np.array([each[name] for name in names], dtype=float) for each in columns]  # (judges, N), NaN for None
        whole = [row[:, np.isfinite(row).all(0)] for row in rows]
        kept = [i for i, row in enumerate(whole) if row.shape[1] >= max(1, ENOUGH * self.config.samples)]
        if len(kept) < FEW:
            raise ValueError(
                f"{len(kept)} of {len(prompts)} prompts have half of their samples scored by every judge, and "
                f"intervals need {FEW}; look what the rewards return None for"
            )
        least = min(whole[i].shape[1] for i in kept)
        together = np.stack([whole[i][:, :least] for i in kept], 1)
        scores = dict(zip(names, together, strict=True))
        return scores, [prompts[i] for i in kept], len(prompts) - len(kept)

    def _samples_of(self, prompt: Prompt) -> dict[str, Column]:
        number = self.config.samples
        answers = complete(self.writer, [prompt] * number, self.config.seed, self.config.sampler, copies=range(number))
        return self.judges.scores(answers)

    def measure(self, name: str, point: Point, prompts: Sequence[Prompt]) -> Scores:
        """Of a policy, by judge and as `kl`, the mean over its samples of each prompt (prompts,); NaN where nobody
        scores any.

        Raises:
            ValueError: if its tokens, or its template, are not the initial policy's.
        """
        means = self.opened.once(name, partial(self._means_of, point, prompts))
        return {key: np.array(column, dtype=float) for key, column in means.items()}

    def _means_of(self, point: Point, prompts: Sequence[Prompt]) -> dict[str, Column]:
        self.opened.say(f"policy {point.label}: {point.folder}")
        tokenizer = load_tokenizer(point.folder)
        require_same_tokens(tokenizer, self.writer.tokenizer, f"policy {point.folder}")
        if not same_reading(tokenizer, self.writer.tokenizer):
            raise ValueError(
                f"{point.folder}: its chat template is not that of {self.config.policy}; KL is not defined"
            )
        policy = load_policy(point.folder, tokenizer)
        copies = [k for _ in prompts for k in range(self.config.policy_samples)]
        asked = [p for p in prompts for _ in range(self.config.policy_samples)]
        answers = complete(Writer(point.label, policy, tokenizer), asked, self.config.seed, self.config.sampler, copies)
        kl = log_ratios(self.writer.policy, policy, answers, self.config.sampler.temperature)
        columns: dict[str, Column] = {"kl": kl.tolist(), **self.judges.scores(answers)}
        return {key: _means(column, self.config.policy_samples) for key, column in columns.items()}


def _means(column: Column, size: int) -> Column:
    """Means over the known values of each prompt's samples."""
    groups = [[v for v in column[i : i + size] if v is not None] for i in range(0, len(column), size)]
    return [fmean(group) if group else None for group in groups]


def judgments(config: OveroptimizeConfig, prompts: Sequence[Prompt]) -> Scores | None:
    """By model name (prompts,) the share of votes won from the baseline, less one half; NaN where nobody voted. None if
    gold is no file of judgments.

    Raises:
        ValueError: if it judges too few of these prompts.
    """
    if config.gold_judgments is None:
        return None
    places: dict[object, int] = {p.id: i for i, p in enumerate(prompts)}
    places |= {("prompt", dumps(p.model_dump(mode="json")["text"], sort_keys=True)): i for i, p in enumerate(prompts)}
    rows = [(places[row["id"]], row["models"]) for row in read_judgments(config.gold_judgments) if row["id"] in places]
    if len({place for place, _ in rows}) < FEW:
        raise ValueError(
            f"gold: {config.gold_judgments} judges {len({place for place, _ in rows})} of the {len(prompts)} prompts, "
            f"and intervals need {FEW}; give the prompts that were judged, or the judgments of these"
        )
    names = {name for _, models in rows for name in models}
    votes = {name: np.full(len(prompts), np.nan) for name in names}
    for place, models in rows:
        for name, verdict in models.items():
            if wins := verdict["wins"]:
                votes[name][place] = wins.get(LABELERS, next(iter(wins.values()))) - 0.5
    return votes


@dataclass(frozen=True)
class Study:
    """Scores of the initial policy's samples, (prompts, N) by judge, and what is made of them.

    `votes` are people's judgments by model name; without them gold is among the judges, or there is none.
    """

    prompts: Sequence[Prompt]
    samples: Scores
    proxies: Sequence[str]
    votes: Scores | None
    bootstrap: Bootstrap

    @property
    def number(self) -> int:
        """How many samples of each prompt count."""
        return self.samples[self.proxies[0]].shape[1]

    @property
    def unit_name(self) -> str | None:
        """What gold is measured in."""
        if self.votes is not None:
            return VOTES_UNIT
        return SAMPLES_UNIT if GOLD in self.samples else None

    @property
    def unit(self) -> float:
        """The standard deviation of gold over all samples of all prompts.

        Raises:
            ValueError: if it is 0.
        """
        spread = float(self.samples[GOLD].std())
        if not spread > 0:
            raise ValueError(
                f"gold scores all {self.samples[GOLD].size:,} samples alike, so it cannot tell a better one; give "
                "another gold, or prompts that it tells apart"
            )
        return spread

    def initial(self) -> dict[str, dict[str, float] | None]:
        """The initial policy's mean score by judge, in the judge's own unit, and the samples' standard deviation."""
        return {
            name: (self.bootstrap.mean(scores.mean(1)) or {}) | {"std": float(scores.std())}
            for name, scores in self.samples.items()
        }

    def results(
        self, curves: Mapping[str, tuple[str, list[Point]]], measured: Mapping[str, Sequence[Scores]]
    ) -> dict[str, Any]:
        """`best_of_n` by proxy, `curves` by name, their `frontier`, and the `best` run of each sweep."""
        best_of_n: dict[str, Any] = {}
        lines: dict[str, Any] = {}
        best: dict[str, Any] = {}
        for proxy in self.proxies:
            self._warn_if_blind(proxy)
            best_of_n[proxy] = best_of_n_curve(
                self.samples[proxy], self._gold_of_best(proxy), self.bootstrap, f"best_of_n.{proxy}"
            )
        for name, (stage, points) in curves.items():
            rows = {key: np.stack([each[key] for each in measured[name]]) for key in measured[name][0]}
            gains = {key: rows[key] - self.samples[key].mean(1) for key in self.proxies}
            gold = self._gold_of(name, points, rows)
            lines[name] = {"stage": stage} | policies_curve(points, rows["kl"], gains, gold, self.bootstrap, name)
            chosen = best_run(points, gold, self.bootstrap, name) if stage == "sweep" and gold is not None else None
            if chosen:
                best[name] = chosen
        return {"best_of_n": best_of_n, "curves": lines, "frontier": frontier(lines), "best": best}

    def _gold_of_best(self, proxy: str) -> Callable[[int], Array] | None:
        votes = self.votes
        if votes is not None:
            return lambda n: votes.get(f"best_of_{n}", np.full(len(self.prompts), np.nan))
        return gains_of(self.samples[proxy], self.samples[GOLD], self.unit) if GOLD in self.samples else None

    def _gold_of(self, curve: str, points: Sequence[Point], rows: Scores) -> Array | None:
        if self.votes is not None:
            nobody = np.full(len(self.prompts), np.nan)
            return np.stack([self.votes.get(f"{curve}-{point.label}", nobody) for point in points])
        return (rows[GOLD] - self.samples[GOLD].mean(1)) / self.unit if GOLD in rows else None

    def _warn_if_blind(self, proxy: str) -> None:
        scores = self.samples[proxy]
        alike = int((scores.min(1) == scores.max(1)).sum())
        if self.number > 1 and alike > BLIND * len(scores):
            self.bootstrap.warn(
                f"{proxy} scores all samples of {alike} of {len(scores)} prompts alike: the best of n is any of them"
            )


def write_csv(path: Path, results: Mapping[str, Any]) -> None:
    """One row for each point of a curve and proxy, with the ends of the intervals; empty where there is no number."""
    header = ["curve", "point", "proxy", "kl", "kl_low", "kl_high", "kl_bound", "d"]
    header += [f"{what}{end}" for what in ("proxy_gain", "gold_gain") for end in ("", "_low", "_high")]

    def ends(rate: Mapping[str, float] | None) -> list[float | None]:
        return [rate[key] for key in ("mean", "low", "high")] if rate else [None] * 3

    rows: list[list[Any]] = []
    for proxy, curve in results["best_of_n"].items():
        for p in curve["points"]:
            start = ["best_of_n", p["n"], proxy, p["kl"], None, None, p["kl_bound"], p["d"]]
            rows.append([*start, *ends(p["proxy"]), *ends(p["gold"])])
    for name, curve in results["curves"].items():
        for p in curve["points"]:
            for proxy, gain in p["proxies"].items():
                start = [name, p["point"], proxy, *ends(p["kl"]), None, p["d"]]
                rows.append([*start, *ends(gain), *ends(p["gold"])])
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])
