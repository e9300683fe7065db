"""What a recipe's run folders say, as plain numbers: the report's summary.json, and what its page is drawn from.

Where a recipe has several runs of a stage of which one is reported (reward, rank, answer, judge, evaluate), the first
by name counts. Rates are `{mean, low, high, n}` with 95 % intervals; losses and KL are in nats.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from tutelage.data.judgments import FAULTS
from tutelage.runs import done as results_of
from tutelage.runs import identity_of, lost_file
from tutelage.settings.strict_yaml import read_yaml
from tutelage.stats.intervals import FEW, estimate
from tutelage.terminal import reason, short


@dataclass(frozen=True)
class Folder:
    """A finished run: its name, stage, results and settings."""

    name: str
    path: Path
    stage: str
    done: dict[str, Any]
    settings: dict[str, Any]

    def curve(self, key: str) -> tuple[list[float], list[float]]:
        """(steps, values) of a logged number; empty if it was never logged."""
        rows = [row for row in read_lines(self.path / "metrics.jsonl") if key in row]
        return [row["step"] for row in rows], [row[key] for row in rows]

    def seconds(self, key: str) -> list[float]:
        """How long the run had worked when each value of a number was logged."""
        return [row["seconds"] for row in read_lines(self.path / "metrics.jsonl") if key in row]

    def along(self, other: str, key: str) -> list[float]:
        """The value of another number when each value of a number was logged; both are logged together."""
        return [row[other] for row in read_lines(self.path / "metrics.jsonl") if key in row]

    def tokens(self, key: str) -> list[float]:
        """How many tokens an online run had sampled, nearly, when each value of a number was logged."""
        total, totals = 0.0, []
        for row in read_lines(self.path / "metrics.jsonl"):
            total += row.get("objective/sampled", self.settings.get("batch_size", 0)) * row.get("objective/length", 0.0)
            totals += [total] if key in row else []
        return totals


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file; none if there is no file."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    try:
        return [json.loads(line) for line in lines if line]
    except ValueError as error:
        raise ValueError(f"{path}: is damaged ({reason(error)}); run its stage anew") from None


def read_runs(*runs: Path) -> list[Folder]:
    """The finished runs among these folders and right inside them, by name, reports left out.

    Raises:
        ValueError: if one is damaged, or has lost a file, or two have one name.
    """
    folders: list[Folder] = []
    places = dict.fromkeys(
        p.parent for each in runs for p in (each / "done.json", *each.glob("*/done.json")) if p.exists()
    )
    for path in sorted(places, key=lambda place: place.name):
        whole = (path / "inputs.json").exists() and (path / "config.yaml").exists()
        if whole and not path.name.startswith("."):  # such a one waits to be replaced
            stage, settings = identity_of(path)["stage"], read_yaml(path / "config.yaml")
            done = results_of(path) or {}
            if lost := lost_file(path):
                raise ValueError(f"runs: {lost}; run its stage again")
            if stage != "report" and any(f.name == path.name for f in folders):
                raise ValueError(f"runs: two are called {short(path.name)}, one of them {path}; rename its folder")
            folders.append(Folder(path.name, path, stage, done, settings))
    return [folder for folder in folders if folder.stage != "report"]


WANTED = {  # stages that a full report draws on -> what they would show, and how to get it
    "sft": "what fine-tuning learned: `tutelage sft`",
    "reward": "whether the reward model is sound: `tutelage reward` with held-out rankings under `valid`",
    "agreement": "how far labelers agree, and the reward model with them: `tutelage agreement`",
    "answer": "answers side by side, KL and the loss on pretraining text: `tutelage answer`",
    "benchmark": "what alignment costs on public benchmarks: `tutelage benchmark`",
    "overoptimize": "when more optimisation would do harm: `tutelage overoptimize`",
    "evaluate": "which answers are preferred: `tutelage judge`, or people's comparisons, then `tutelage evaluate`",
}


def missing(folders: Sequence[Folder]) -> list[str]:
    """What no run measured, and how to measure it."""
    return [what for stage, what in WANTED.items() if first(folders, stage) is None]


def finished(folders: Sequence[Folder]) -> str:
    """The day on which the last of the runs was finished."""
    return f"{date.fromtimestamp(max((f.path / 'done.json').stat().st_mtime for f in folders)):%Y-%m-%d}"


def first(folders: Sequence[Folder], stage: str) -> Folder | None:
    """The first run of a stage, or None."""
    return next((f for f in folders if f.stage == stage), None)


def results(folders: Sequence[Folder], stage: str) -> dict[str, Any]:
    """What the first run of a stage found; nothing if there is none."""
    folder = first(folders, stage)
    return folder.done if folder else {}


def baseline_of(folders: Sequence[Folder]) -> str:
    """The model all others are judged against, as the judgments or the judge's run say."""
    judged = results(folders, "evaluate") | results(folders, "judge")
    return str(judged.get("baseline", "baseline"))


def judges_of(folders: Sequence[Folder]) -> dict[str, str]:
    """The judges by name, the one that counts first, and who each is, where the judging run says so."""
    names = results(folders, "evaluate").get("judges", ["labelers"])
    who = results(folders, "judge").get("judges", {})
    return {name: who.get(name, "") for name in names}


def win_rates(folders: Sequence[Folder]) -> dict[str, str]:
    """Where each judge's win rates stand in what `evaluate` found."""
    return {name: f"{name}_win_rate" if i else "win_rate" for i, name in enumerate(judges_of(folders))}


def trained_models(folders: Sequence[Folder]) -> dict[str, bool]:
    """Names of the answering models that scores or rankings trained, or texts that scores chose -> whether pretraining
    text was mixed in."""
    chose = {f.name for f in folders if f.stage == "select"}
    made_by = {
        name: run
        for name, run in _makers(folders, "online", "dpo", "sft").items()
        if run.stage != "sft" or Path(run.settings.get("demonstrations", "")).parent.name in chose
    }
    return {name: run.settings.get("pretraining_texts") is not None for name, run in made_by.items()}


def start_of(folders: Sequence[Folder]) -> str | None:
    """The answering model that the baseline was fine-tuned from; None if no run here made the baseline, or it did not
    answer."""
    answer, made_by = first(folders, "answer"), _makers(folders, "sft").get(baseline_of(folders))
    models = answer.settings["models"] if answer and made_by else {}
    return next((name for name, path in models.items() if made_by and path == made_by.settings.get("model")), None)


def plain_of(folders: Sequence[Folder]) -> dict[str, str]:
    """Answering models with pretraining text mixed in -> the model that the same algorithm made without it."""
    mixed: dict[str, str | None] = {}
    plain: dict[str | None, str] = {}
    for name, run in _makers(folders, "online").items():
        algorithm = run.settings.get("algorithm", {}).get("name")
        if run.settings.get("pretraining_texts") is not None:
            mixed[name] = algorithm
        else:
            plain.setdefault(algorithm, name)
    return {name: plain[algorithm] for name, algorithm in mixed.items() if algorithm in plain}


def _makers(folders: Sequence[Folder], *stages: str) -> dict[str, Folder]:
    """Answering models -> the run of one of these stages that made each."""
    answer, runs = first(folders, "answer"), {f.name: f for f in folders if f.stage in stages}
    made_by = {name: Path(source).parent.name for name, source in answer.settings["models"].items()} if answer else {}
    return {name: runs[run] for name, run in made_by.items() if run in runs}


def in_order(values: Mapping[str, Any], folders: Sequence[Folder]) -> dict[str, Any]:
    """Values by model in the recipe's order, a prompted model after the model it is; those unmeasured left out."""
    answer = first(folders, "answer")
    settings = answer.settings if answer else {"models": {}, "prompted": {}, "greedy": []}
    named = [n for m in settings["models"] for n in (m, *(p for p, of in settings["prompted"].items() if of == m))]
    names = dict.fromkeys([*named, *(f"{n}_greedy" for n in settings["greedy"]), *values])
    return {name: values[name] for name in names if name in values and values[name] != {}}


def agreement(folders: Sequence[Folder]) -> dict[str, dict[str, Any]]:
    """By arm of labelers: `agreement` among them, and `readers`, the share of their pairs that a reader without noise
    orders alike; arms whose prompts had one labeler left out."""
    arms = {k: v for k, v in results(folders, "rank").items() if isinstance(v, dict) and "agreement" in v}
    return {arm: measures for arm, measures in arms.items() if measures["agreement"].get("pairs")}


def same_pairs(folders: Sequence[Folder]) -> dict[str, dict[str, float]]:
    """Of an agreement run with a reward model: how often two labelers, and it, say the same of the very same pairs."""
    measures: dict[str, Any] = next(
        (f.done["reward_model"] for f in folders if f.stage == "agreement" and f.done["reward_model"]), {}
    )
    names = {"labelers": "labelers_shared", "model": "model_shared"}
    return {name: measures[key] for name, key in names.items() if key in measures}


def tax(folders: Sequence[Folder]) -> dict[str, Any]:
    """Change of the loss on pretraining text since the baseline, with intervals over documents, in nats per token.

    `rise` is by model; `plain` names, by model with pretraining text mixed in, the one that its algorithm made
    without; `taken_back` is the share of that one's rise that is not there, where it is clear of noise. Empty where
    there are fewer than `FEW` documents, or the models' tokens differ, as losses per token do not compare then.
    """
    answer, baseline = first(folders, "answer"), baseline_of(folders)
    rows = read_lines(answer.path / "losses.jsonl") if answer else []
    if len(rows) < FEW or baseline not in rows[0] or any(len({n for _, n in row.values()}) > 1 for row in rows):
        return {}
    tokens = [row[baseline][1] for row in rows]
    more = {name: [row[name][0] - row[baseline][0] for row in rows] for name in rows[0] if name != baseline}
    rise = {name: estimate(nats, tokens, scale=None) for name, nats in more.items()}
    plain = {name: other for name, other in plain_of(folders).items() if {name, other} <= more.keys()}
    taken: dict[str, dict[str, Any]] = {}
    for name, other in plain.items():
        if rise[other]["low"] > 0:
            back = [a - b for a, b in zip(more[other], more[name], strict=True)]
            share = estimate(back, more[other], scale=None)
            taken[name] = {key: value for key, value in share.items() if key != "n"}
    return {"rise": rise, "plain": plain, "taken_back": taken}


def summarise(*runs: Path) -> dict[str, Any]:
    """The report's numbers. What no run measured is an empty mapping, or None for a single number.

    `seed` is None where runs differ in it; `seconds` are by run name, with their `total`.
    """
    folders = read_runs(*runs)
    answer, evaluate = results(folders, "answer"), results(folders, "evaluate")
    seconds = {f.name: f.done["seconds"] for f in folders}
    seeds = {f.settings["seed"] for f in folders}
    valid, arms = results(folders, "reward").get("valid", {}), agreement(folders)
    reward: dict[str, Any] = {}
    for arm, key in (("training_labelers", "train_labelers"), ("heldout_labelers", "heldout_labelers")):
        if arm in valid:
            interval = [valid[arm]["low"], valid[arm]["high"]]
            reward |= {f"accuracy_{key}": valid[arm]["accuracy"], f"accuracy_{key}_interval": interval}
    if "training_labelers" in arms:
        reward["training_labeler_agreement"] = arms["training_labelers"]["agreement"]["mean"]
    if "heldout_labelers" in arms:
        reward["labeler_agreement"] = arms["heldout_labelers"]["agreement"]["mean"]
        reward |= {f"{name}_ceiling": share for name, share in arms["heldout_labelers"].get("readers", {}).items()}
    if shared := same_pairs(folders):
        reward["same_pairs"] = shared
    if "faults" in (measured := results(folders, "measure")):
        reward["faults"] = measured["faults"]
    of_answers = ("pretraining_loss", "kl", "kl_standard_error", "scores")
    of_judgments = {f"{key}_vs_{baseline_of(folders)}": key for key in win_rates(folders).values()}
    return {
        "seed": seeds.pop() if len(seeds) == 1 else None,
        "prompts": evaluate.get("prompts", answer.get("prompts")),
        "answered": answer.get("prompts"),
        "seconds": seconds | {"total": round(sum(seconds.values()), 3)},
        "peak_memory_gib": max((f.done["peak_memory_gib"] for f in folders), default=None),
        "reward_model": reward,
        **{key: in_order(answer.get(key, {}), folders) for key in of_answers},
        **{name: in_order(evaluate.get(key, {}), folders) for name, key in of_judgments.items()},
        "tax": tax(folders),
        "greedy_gain": in_order(evaluate.get("greedy_gain", {}), folders),
        **{fault: in_order(evaluate.get(fault, {}), folders) for fault in FAULTS},
    }
