"""lm-eval, EleutherAI's harness, over several of our folders by one command, offline.

    tutelage lm-eval --models base=B,ppo=P --tasks mine --include-path tasks --output runs/lm-eval

Needs the extra `tutelage[lm-eval]`. Numbers are lm-eval's own; a model is its `hf` model of the folder. Its errors are
standard errors, from which the 95 % intervals here are made; they are over items.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tutelage.models.precision import device
from tutelage.models.tokens import has_template, load_tokenizer
from tutelage.runs import inputs_of, open_run
from tutelage.settings.benchmarks import LmEvalConfig
from tutelage.stats.intervals import Z
from tutelage.terminal import listed, printable, reason

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def wants_template(folder: str, choice: str) -> bool:
    """Whether a model's prompts go through its chat template."""
    return choice == "always" or (choice == "auto" and has_template(load_tokenizer(folder)))


def evaluate(folder: str, config: LmEvalConfig) -> dict[str, Any]:
    """Of a model each task's measures by name, and how many items were asked.

    Raises:
        ValueError: if there is no such task, its data are not here, or lm-eval fails otherwise.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    def missing(manager: TaskManager) -> list[str]:
        return [task for task in config.tasks if not manager.match_tasks([task])]

    manager = TaskManager(include_path=config.include_path, include_defaults=False)
    if missing(manager):  # lm-eval's own are many, and slow to list
        manager = TaskManager(include_path=config.include_path)
    if unknown := missing(manager):
        raise ValueError(f"tasks: lm-eval has no task {listed(unknown)}; see include_path, and `lm-eval ls tasks`")
    template = wants_template(folder, config.chat_template)
    try:
        results = lm_eval.simple_evaluate(
            model="hf", model_args={"pretrained": str(Path(folder)), "dtype": "float32"}, tasks=list(config.tasks),
            task_manager=manager, num_fewshot=config.shots, limit=config.limit, batch_size=config.batch_size,
            apply_chat_template=template, fewshot_as_multiturn=template, log_samples=False, bootstrap_iters=1000,
            device=str(device()), random_seed=config.seed, numpy_random_seed=config.seed, torch_random_seed=config.seed,
            fewshot_random_seed=config.seed,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        offline = "" if config.online else "; it runs offline, so data must be here (see docs/evaluation.md)"
        raise ValueError(f"lm-eval: {type(error).__name__}: {reason(error)[:400]}{offline}") from None
    return {"chat_template": template, "tasks": {task: tidy(own) for task, own in results["results"].items()}}


def tidy(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """lm-eval's `name,filter` and `name_stderr,filter` as measures with `mean`, `low` and `high`."""
    measures = {}
    for key, value in result.items():
        name, comma, kind = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = result.get(f"{name}_stderr,{kind}")
        reach = Z * float(error) if isinstance(error, int | float) else None
        ends = {} if reach is None else {"low": value - reach, "high": value + reach}
        label = name if kind == "none" else f"{name} ({kind})"
        measures[label] = {"mean": float(value), **ends}
    return measures


def run(config: LmEvalConfig) -> None:
    """Write `results`, by task, measure and model, into done.json, and print them.

    Raises:
        ValueError: if lm-eval cannot run a task.
    """
    if not config.online:
        os.environ.update(dict.fromkeys(OFFLINE, "1"))
    import lm_eval  # noqa: F401  # a package that is missing is met before the first step

    opened = open_run("lm-eval", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    for folder in config.models.values():
        load_tokenizer(folder)
    opened.begin(f"{len(config.models)} models, tasks {', '.join(config.tasks)}")
    of_models = {}
    for number, (name, folder) in enumerate(config.models.items()):
        opened.say(name)
        of_models[name] = opened.once(f"results-{number}", partial(evaluate, folder, config))
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for name, own in of_models.items():
        for task, measures in own["tasks"].items():
            for measure, value in measures.items():
                results.setdefault(task, {}).setdefault(measure, {})[name] = value
    templates = {name: own["chat_template"] for name, own in of_models.items()}
    opened.finish(models=list(of_models), results=results, chat_template=templates)
    table = Table("task", "measure", *map(printable, of_models))
    for task, by_measure in results.items():
        for measure, by_model in by_measure.items():
            cells = []
            for name in of_models:
                e = by_model.get(name, {})
                ends = f" [{e['low']:.3f}, {e['high']:.3f}]" if "low" in e else ""
                cells.append(f"{e['mean']:.3f}{ends}" if e else "")
            table.add_row(printable(task), printable(measure), *cells)
    Console().print(table)
