"""The report: one self-contained page (no scripts, nothing fetched), its figures as files, and summary.json, from run
folders alone.

It leads with five answers. A section appears when its runs are there; what no run measured is named at the end.

    tutelage report runs/demo
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tutelage import __version__
from tutelage.data.judgments import FAULTS
from tutelage.files import write_json
from tutelage.report import figures
from tutelage.report import summary as numbers
from tutelage.report.headlines import Headline, headlines
from tutelage.report.overoptimization import best_table, curves_of, falls, fits_table
from tutelage.report.summary import Folder, first, read_lines, results
from tutelage.report.tables import (
    agreement_table,
    benchmarks_table,
    models_table,
    parts_table,
    rankings_table,
    rates_table,
    ratings_table,
    selections_table,
)
from tutelage.runs import open_run
from tutelage.settings.report import ReportConfig

CURVES = {
    "objective/scores": "Score by the reward model",
    "objective/kl": "KL from the reference, nats per answer",
    "objective/entropy": "Entropy, nats per token",
    "objective/length": "Length, tokens",
    "loss/value": "Value loss",
}
BLOCK = 5  # iterations whose mean is a point of the score against KL
BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def run(config: ReportConfig) -> None:
    """Write report.html, summary.json and figures/ (each as SVG and CSV) into the run folder.

    Raises:
        ValueError: if no finished run lies in the folders.
    """
    places = [Path(each) for each in config.runs]
    folders = numbers.read_runs(*places)
    if not folders:
        raise ValueError(
            f"runs: {', '.join(config.runs)}: no finished run in it; name run folders, or a recipe's output"
        )
    opened = open_run("report", config, {f"runs.{f.name}": f.path / "done.json" for f in folders})
    if opened is None:
        return
    opened.begin(f"{len(folders)} finished runs: {', '.join(f.name for f in folders)}")
    summary = numbers.summarise(*places)
    if first(folders, "overoptimize"):
        summary["overoptimization"] = falls(folders)
    judges = numbers.judges_of(folders)
    trained, baseline = list(numbers.trained_models(folders)), numbers.baseline_of(folders)
    answers = headlines(summary, trained, baseline, judges, numbers.start_of(folders))
    shown = Shown(opened.folder / "figures")
    html = page(config, folders, summary, answers, shown)
    write_json(opened.folder / "summary.json", summary)
    (opened.folder / "report.html").write_text(html, encoding="utf-8")
    for answer in answers:
        opened.say(f"{answer.question} {answer.answer}")
    opened.finish(runs=[f.name for f in folders], headlines=[vars(answer) for answer in answers])


class Shown:
    """Writes each figure of the page as a file, too: as SVG, and its numbers as CSV."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: set[str] = set()

    def __call__(self, plot: figures.Plot) -> Markup:
        """The figure for the page, over links to its two files."""
        self.folder.mkdir(exist_ok=True)
        plain = re.sub(r"[^a-z0-9]+", "-", plot.title.lower()).strip("-")[:60] or "figure"
        name = next(n for k in count(1) if (n := plain if k == 1 else f"{plain}-{k}") not in self._names)
        self._names.add(name)
        (self.folder / f"{name}.svg").write_text(figures.alone(plot), encoding="utf-8")
        with (self.folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([plot.columns, *plot.rows])
        links = Markup('<p class="files"><a href="figures/{0}.svg">SVG</a> <a href="figures/{0}.csv">CSV</a></p>')
        return plot.svg + links.format(name)


def page(
    config: ReportConfig, folders: Sequence[Folder], summary: dict[str, Any], answers: Sequence[Headline], shown: Shown
) -> str:
    """The whole page as HTML."""
    baseline, online = numbers.baseline_of(folders), [f for f in folders if f.stage == "online"]
    wins = {judge: summary[f"{key}_vs_{baseline}"] for judge, key in numbers.win_rates(folders).items()}
    others = {title: {n: r for n, r in rates.items() if n != baseline} for title, rates in wins.items() if rates}
    evaluated, valid = results(folders, "evaluate"), results(folders, "reward").get("valid", {})
    answer = first(folders, "answer")
    reference = answer.settings.get("reference") if answer else None
    both = against_kl(summary, wins, numbers.trained_models(folders), reference)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=visible,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(
        title=config.title,
        headlines=answers,
        missing=numbers.missing(folders),
        made={
            "date": numbers.finished(folders),
            "version": __version__,
            "command": f"tutelage report {folder_name(config)}",
        },
        summary=summary,
        baseline=baseline,
        judges=numbers.judges_of(folders),
        folders=folders,
        shown=shown,
        win_figure=figures.dots(others, f"win rate against {baseline}", "Win rates", 0.5) if others else None,
        models=models_table(summary, wins),
        both=figures.against_kl(both, "mean score", f"win rate against {baseline}") if both else None,
        examples=examples(folders, config.examples),
        online=[(f.name, figures.colour(k), figures.dash(k)) for k, f in enumerate(online)],
        curves=online_curves(online),
        sft=[(f, sft_curve(f)) for f in folders if f.stage == "sft"],
        selections=selections_table(folders),
        accuracy=accuracy(valid, numbers.agreement(folders)) if valid else None,
        rankings=rankings_table(valid, numbers.agreement(folders)),
        agreement=agreement_table(folders),
        calibration=[figures.calibration(v["calibration"], name) for name, v in valid.items()],
        tax_figure=tax_figure(summary, baseline),
        faults=rates_table({FAULTS[fault]: summary[fault] for fault in FAULTS}, folders),
        use_cases=rates_table(evaluated.get("win_rate_by_use_case", {}), folders),
        arms=rates_table(evaluated.get("win_rate_by_arm", {}), folders),
        ratings=ratings_table(evaluated),
        flags=rates_table(evaluated.get("flags", {}), folders),
        benchmarks=benchmarks_table(folders),
        measured=[
            (f.name, f.done["verdict"], parts_table(f.done)) for f in folders if f.stage == "measure" and "by" in f.done
        ],
        optimised=[plot for f in folders if f.stage == "overoptimize" for plot in curves_of(f)],
        fits=fits_table(folders),
        best=best_table(folders),
        settings={f.name: (f.path / "config.yaml").read_text(encoding="utf-8") for f in folders},
    )


def tax_figure(summary: Mapping[str, Any], baseline: str) -> figures.Plot | None:
    """The rise of the loss on pretraining text with its intervals; the losses alone where there is no such rise."""
    title = "Loss on pretraining text"
    if rises := summary["tax"].get("rise"):
        return figures.dots({"rise": rises}, f"change since {baseline}, nats per token", title, 0.0)
    loss = {name: {"mean": value} for name, value in summary["pretraining_loss"].items()}
    return figures.dots({"loss": loss}, "nats per token", title) if loss else None


def folder_name(config: ReportConfig) -> str:
    """What to name after `tutelage report`, without the path to it, which is nobody else's concern."""
    return " ".join(Path(each).name for each in config.runs)


def against_kl(
    summary: Mapping[str, Any], wins: Mapping[str, Mapping[str, Any]], trained: Iterable[str], reference: str | None
) -> dict[str, dict[str, Any]]:
    """KL, score and wins by judge of the reference and of each trained model; empty if they were not all measured."""
    kl, scores = {**summary["kl"], **({reference: 0.0} if reference else {})}, summary["scores"]
    models = {
        name: {"kl": kl[name], "score": scores[name], "wins": {j: r[name] for j, r in wins.items() if name in r}}
        for name in ([reference, *trained] if reference else trained)
        if name in kl and name in scores
    }
    return models if len(models) > 1 else {}


def visible(value: Any) -> Any:
    """Text with control characters, lone surrogates and marks that reorder text written out, as ⟨U+202E⟩."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    hidden = [c in BIDI or (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t") for c in value]
    return "".join(f"⟨U+{ord(c):04X}⟩" if hide else c for c, hide in zip(value, hidden, strict=True))


def accuracy(valid: Mapping[str, Any], arms: Mapping[str, Any]) -> figures.Plot:
    """The reward model's accuracy, and what a noise-free reader reaches on the same pairs."""
    series: dict[str, dict[str, Any]] = {
        "reward model": {name: v | {"mean": v["accuracy"]} for name, v in valid.items()}
    }
    shared = {name: arm for name, arm in arms.items() if name in valid}
    if shared:
        series["noise-free reader"] = {
            name: {"mean": share} for name, arm in shared.items() for share in arm.get("readers", {}).values()
        }
    return figures.dots(series, "share of pairs", "Accuracy of the reward model", 0.5)


def examples(folders: Sequence[Folder], count: int) -> list[dict[str, Any]]:
    """The first answered prompts of every use case in turn, `count` in all: `use_case`, `prompt` (text), `answers`."""
    answer = first(folders, "answer")
    by_use_case = defaultdict(list)
    for row in read_lines(answer.path / "answers.jsonl") if answer else []:
        text = row["prompt"]
        if not isinstance(text, str):
            text = "\n".join(m["content"] if len(text) == 1 else f"{m['role']}: {m['content']}" for m in text)
        answers = numbers.in_order(row["answers"], folders)
        by_use_case[row.get("use_case") or ""].append(
            {"use_case": row.get("use_case"), "prompt": text, "answers": answers}
        )
    in_turn = zip_longest(*(by_use_case[use_case] for use_case in sorted(by_use_case)))
    return [row for turn in in_turn for row in turn if row][:count]


def online_curves(online: Sequence[Folder]) -> list[figures.Plot]:
    """A small figure for each of `CURVES` that was logged, all online runs overlaid; and of the first one, the score,
    against the KL spent, and by what it cost: at equal tokens, and at equal time."""
    panels = [(title, "iteration", {f.name: f.curve(key) for f in online}) for key, title in CURVES.items()]
    key, title = next(iter(CURVES.items()))
    costs = {
        "tokens sampled": Folder.tokens,
        "seconds of training": Folder.seconds,
    }
    for axis, cost in costs.items():
        panels.append((title, axis, {f.name: (cost(f, key), f.curve(key)[1]) for f in online}))
    spent = {f.name: (in_blocks(f.along("objective/kl", key)), in_blocks(f.curve(key)[1])) for f in online}
    panels.append((title, f"KL, nats; means of {BLOCK} iterations", spent))
    return [figures.lines(s, name, axis) for name, axis, s in panels if any(steps for steps, _ in s.values())]


def in_blocks(values: Sequence[float]) -> list[float]:
    """Means of so many values in a row; both axes are noisy, and a line through all points would be a scribble."""
    return [fmean(values[i : i + BLOCK]) for i in range(0, len(values), BLOCK)]


def sft_curve(folder: Folder) -> figures.Plot:
    """Training and validation loss of a fine-tuning run."""
    series = {"training": folder.curve("loss/train"), "validation": folder.curve("valid/loss")}
    return figures.lines(series, f"Loss of {folder.name}, nats per token", "update")
