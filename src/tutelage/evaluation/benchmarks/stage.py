"""Public benchmarks over several models, each compared with a baseline item by item: the alignment tax.

    tutelage benchmark --models base=B,sft=S,ppo=P --tasks lambada=FILE,truthfulqa=FILE --output runs/benchmark

Each benchmark has a file here, which says what it measures and where that differs from what was published; `TASKS`
names them. Responses are kept model by model and benchmark by benchmark, so that a resume asks nothing twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table

from tutelage.data.datasets import read_texts, write_jsonl
from tutelage.data.records import Prompt
from tutelage.evaluation.benchmarks import crows_pairs, ifeval, lambada, reading, toxicity, truthfulqa, winogender
from tutelage.evaluation.benchmarks.asking import ask, fits
from tutelage.evaluation.benchmarks.classified import classifier_inputs, classify, described, open_classifier
from tutelage.evaluation.benchmarks.protocol import Generation, Item, Measure, Scores, Task
from tutelage.evaluation.benchmarks.results import results_of, tax_row
from tutelage.evaluation.tax import document_losses
from tutelage.models.loading import load_policy
from tutelage.models.tokens import has_template, load_tokenizer, same_tokens
from tutelage.rewards.reward import Reward
from tutelage.runs import Run, dropped, inputs_of, open_run
from tutelage.sampling.completions import Writer
from tutelage.settings.benchmarks import CLASSIFIED, BenchmarkConfig
from tutelage.terminal import printable

TASKS: Mapping[str, Task] = {
    "truthfulqa": truthfulqa.CHOICE, "truthfulqa_generation": truthfulqa.GENERATION, "crows_pairs": crows_pairs.TASK,
    "winogender": winogender.TASK, "lambada": lambada.TASK, "squad_v2": reading.SQUAD, "drop": reading.DROP,
    CLASSIFIED: toxicity.TASK, "ifeval": ifeval.TASK,
}  # fmt: skip
JUDGED = "truthfulqa_generation"  # whose texts are written as answers for a judge
TEXT = Measure(scale=None, better="lower", tax=True, perplexity=True)  # loss on pretraining text, in nats per token


@dataclass(frozen=True)
class Work:
    """A benchmark's items that every model can read, and how many others there are."""

    items: list[Item]
    too_long: int
    of_file: int


def open_writers(config: BenchmarkConfig) -> dict[str, Writer]:
    """Every model by name."""
    tokenizers = {name: load_tokenizer(folder) for name, folder in config.models.items()}
    return {n: Writer(n, load_policy(folder, tokenizers[n]), tokenizers[n]) for n, folder in config.models.items()}


def work_of(
    name: str, source: str, writers: Mapping[str, Writer], chat: Sequence[str], config: BenchmarkConfig
) -> Work:
    """The items of a benchmark: as many as asked, less those that some model cannot read.

    Raises:
        ValueError: if its file cannot be read, or no model can read any item.
    """
    everything = TASKS[name].read(source, config)
    items = everything
    if config.limit and config.limit < len(everything):
        drawn = set(Random(f"{config.seed}/{name}").sample(range(len(everything)), config.limit))
        items = [item for number, item in enumerate(everything) if number in drawn]
    kept = [item for item in items if all(fits(w, item, n in chat) for n, w in writers.items())]
    if not kept:
        raise ValueError(f"tasks.{name}: none of {len(items)} items fits every model's context; leave it out")
    return Work(kept, len(items) - len(kept), len(everything))


def responses_of(
    opened: Run, name: str, writer: Writer, number: int, work: Work, chat: bool, config: BenchmarkConfig
) -> dict[str, Any]:
    """A model's responses to a benchmark, kept until the run is done."""
    return opened.once(f"{name}-{number}", partial(ask, writer, name, work.items, chat, config))


def scores_of(name: str, work: Work, responses: Sequence[Sequence[dict[str, Any]]]) -> list[Scores]:
    """A score for each item."""
    return [TASKS[name].scores(item, own) for item, own in zip(work.items, responses, strict=True)]


def write_texts(opened: Run, name: str, work: Work, texts: Mapping[str, Sequence[Sequence[dict[str, Any]]]]) -> None:
    """What the models wrote: `responses-TASK.jsonl`, a row an item and ask; and answers.jsonl, if a judge is to read
    them."""
    rows = []
    for i, item in enumerate(work.items):
        for j, asked in enumerate(item.asks):
            if isinstance(asked, Generation):
                own = {model: responses[i][j] for model, responses in texts.items()}
                rows.append({"task": name, "item": item.id, "prompt": asked.text, "responses": own})
    if rows:
        write_jsonl(opened.folder / f"responses-{name}.jsonl", rows)
    if name == JUDGED:
        lines = []
        for i, item in enumerate(work.items):
            line = Prompt(id=str(i), text=item.id, use_case=name, meta=item.expects).model_dump(
                mode="json", exclude_none=True
            )
            line["prompt"] = line.pop("text")
            lines.append(line | {"answers": {m: r[i][0]["texts"][0].strip() for m, r in texts.items()}})
        write_jsonl(opened.folder / "answers.jsonl", lines)


def text_losses(
    opened: Run, writers: Mapping[str, Writer], texts: Sequence[str], baseline: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Loss on pretraining text by model, in nats per token over documents, and its row of the alignment tax. Models
    whose tokens differ from the baseline's have a loss, but no difference."""
    losses: dict[str, list[Scores]] = {}
    for number, (name, w) in enumerate(writers.items()):
        own = opened.once(f"losses-{number}", partial(document_losses, w.policy, w.tokenizer, texts))
        losses[name] = [{"loss": (nats, tokens)} if tokens else {} for nats, tokens in own]
    alike = {n: s for n, s in losses.items() if same_tokens(writers[n].tokenizer, writers[baseline].tokenizer)}
    items = [Item(str(number), ()) for number in range(len(texts))]
    result = results_of({"loss": TEXT}, items, alike, baseline)
    others = results_of({"loss": TEXT}, items, losses, baseline)
    result["means"] = others["means"]
    return result, tax_row("pretraining_text", "loss", TEXT, result)


def show(results: Mapping[str, Any], names: Sequence[str], baseline: str) -> None:
    """Print the results: a row a measure, with each model's mean and interval."""
    table = Table(
        "benchmark", "measure", *[printable(n) for n in names], f"n; differences are to {printable(baseline)}"
    )
    for task, result in results.items():
        for measure, by_model in result["means"].items():
            cells = []
            for name in names:
                e, gap = by_model.get(name), result["differences"].get(measure, {}).get(name)
                text = f"{e['mean']:.3f} [{e['low']:.3f}, {e['high']:.3f}]" if e else ""
                cells.append(text + (f"\n{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]" if gap else ""))
            table.add_row(task, measure, *cells, f"{next(iter(by_model.values()))['n']:,.0f}")
    Console().print(table)


def run(config: BenchmarkConfig) -> None:
    """Write means, paired differences and the alignment tax into done.json, and every item's scores into items.jsonl.

    Raises:
        ValueError: if a file cannot be read, no item fits, or the classifier fails. Responses so far are kept.
    """
    opened = open_run("benchmark", config, inputs_of(config, *config.INPUTS) | classifier_inputs(config))
    if opened is None:
        return
    texts = read_texts(config.texts) if config.texts else None
    writers = open_writers(config)
    chat = config.chat if config.chat is not None else [n for n, w in writers.items() if has_template(w.tokenizer)]
    works = {name: work_of(name, source, writers, chat, config) for name, source in config.tasks.items()}
    reward = open_classifier(config) if CLASSIFIED in works else None
    unused = dropped(
        {}, texts=texts.dropped if texts else {},
        **{f"tasks.{name}": {"too long": work.too_long} for name, work in works.items()},
    )  # fmt: skip
    counts = ", ".join(f"{name} ({len(work.items):,} items)" for name, work in works.items())
    opened.begin(f"{', '.join(writers)}: {counts or 'pretraining text alone'}", lost=unused)
    for name, work in works.items():
        if TASKS[name].published and work.of_file not in TASKS[name].published:
            whole = " or ".join(f"{number:,}" for number in sorted(TASKS[name].published))
            opened.warn(f"tasks.{name}: has {work.of_file:,} items, where the published file has {whole}")
    results, tax, cut, lines = _measure(opened, works, writers, chat, reward, config)
    if texts:
        results["pretraining_text"], row = text_losses(opened, writers, texts.records, config.against)
        tax.insert(0, row)
    write_jsonl(opened.folder / "items.jsonl", lines)
    opened.finish(
        models=list(writers), baseline=config.against, chat=list(chat),
        items={name: len(work.items) for name, work in works.items()}, results=results, tax=tax, cut=cut,
        measures={name: {m: vars(measure) for m, measure in TASKS[name].measures.items()} for name in works},
        classifier=described(config) if reward else {}, dropped=unused,
    )  # fmt: skip
    show(results, list(writers), config.against)


def _measure(
    opened: Run, works: Mapping[str, Work], writers: Mapping[str, Writer], chat: Sequence[str], reward: Reward | None,
    config: BenchmarkConfig,
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """Results by benchmark, rows of the tax, how many contexts were cut, and each item's scores."""
    results: dict[str, Any] = {}
    cut: dict[str, dict[str, int]] = {}
    tax, lines = [], []
    jobs = [(name, model) for name in works for model in writers]
    opened.forget_after(-1)  # what is kept is logged again
    by_task: dict[str, dict[str, list[Scores]]] = {name: {} for name in works}
    written: dict[str, dict[str, Any]] = {name: {} for name in works}
    for index in opened.track(range(len(jobs))):
        name, model = jobs[index]
        work, number = works[name], list(writers).index(model)
        answer = responses_of(opened, name, writers[model], number, work, model in chat, config)
        responses = answer["responses"]
        if name == CLASSIFIED and reward is not None:
            toxic = opened.once(f"toxicity-{number}", partial(classify, reward, work.items, responses))
            responses = [
                [r | {"toxicity": t} for r, t in zip(own, each, strict=True)]
                for own, each in zip(responses, toxic, strict=True)
            ]
        by_task[name][model], written[name][model] = scores_of(name, work, responses), responses
        cut.setdefault(name, {})[model] = answer["cut"]
        opened.log(index, {"answers": float(len(work.items))})
    for name, work in works.items():
        measures, scores = TASKS[name].measures, by_task[name]
        results[name] = results_of(measures, work.items, scores, config.against)
        tax += [
            tax_row(name, m, measure, results[name])
            for m, measure in measures.items()
            if measure.tax and m in results[name]["means"]
        ]
        write_texts(opened, name, work, written[name])
        lines += [
            {"task": name, "item": item.id, "group": item.group, "scores": {m: s[i] for m, s in scores.items()}}
            for i, item in enumerate(work.items)
        ]
    return results, tax, {n: {m: c for m, c in own.items() if c} for n, own in cut.items() if any(own.values())}, lines
