"""Runs a recipe's stages in order; what is done and unchanged is skipped.

A recipe is YAML: `stages`, a mapping of run names to settings, each with a `stage`. In values, `{run}` stands for the
folder all runs go to, `{base}` for the shipped base model, `{seed}` for the seed, and `{name}` for an input that the
recipe names under `inputs`, there with its default, or null where whoever runs it must give one. `algorithms` names
the runs of `online` and `dpo` that are made if no others are asked for, and `best_of_n`, which trains nothing, if
`answer` is to keep its `best_of`; without it all are. Nothing here imports torch.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.data.datasets import read_demonstrations, read_prompts, read_rankings, read_texts
from tutelage.runs import DryRun, done, inputs_of
from tutelage.settings.claims import ClaimsConfig
from tutelage.settings.common import StageConfig, flat, make, named, nearest
from tutelage.settings.judging import JudgeConfig
from tutelage.settings.strict_yaml import parse_yaml, read_yaml
from tutelage.shipped import BASE
from tutelage.terminal import printable, short, tell

PACKAGE = Path(__file__).parent
RECIPES = PACKAGE / "recipes"
RUN_NAME = re.compile(r"(?!\.+$)[\w.-]+")  # of a folder right inside the output
LONGEST = 100_000  # characters of a filled text
READERS: Mapping[str, Callable[[str], object]] = {
    "texts": read_texts, "demonstrations": read_demonstrations, "prompts": read_prompts, "rankings": read_rankings,
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A verb: where its settings and its function live, and what it does in a line."""

    config: str
    function: str
    help: str

    def config_class(self) -> type[StageConfig]:
        module, name = self.config.split(":")
        return getattr(importlib.import_module(f"tutelage.{module}"), name)

    def load(self) -> Callable[[StageConfig], object]:
        """Its function, and with it all packages that it needs."""
        module, name = self.function.split(":")
        return getattr(importlib.import_module(f"tutelage.{module}"), name)

    def run(self, config: StageConfig) -> bool:
        """Run the stage. Whether it is done by then: a dry run ends before the first step, if there is one left."""
        try:
            self.load()(config)
        except DryRun:
            return False
        return True


STAGES = {
    "pretrain": Stage(
        "settings.pretrain:PretrainConfig", "stages.pretrain:run", "train a small base model from plain text"
    ),
    "sft": Stage("settings.sft:SftConfig", "stages.sft:run", "fine-tune a base model on demonstrations"),
    "collect": Stage(
        "settings.collect:CollectConfig", "stages.collect:run", "sample K completions per prompt to be ranked"
    ),
    "select": Stage(
        "settings.select:SelectConfig", "stages.select:run", "rank candidates by a reward model, and keep the best"
    ),
    "prioritize": Stage(
        "settings.prioritize:PrioritizeConfig", "stages.prioritize:run", "choose the candidates to label next"
    ),
    "reward": Stage("settings.reward:RewardConfig", "stages.reward:run", "fit a reward model to rankings"),
    "dpo": Stage("settings.dpo:DpoConfig", "stages.dpo:run", "fit a policy to rankings or pairs directly (DPO, IPO)"),
    "merge": Stage("settings.merge:MergeConfig", "stages.merge:run", "merge an adapter into its base: a plain folder"),
    "measure": Stage(
        "settings.reward:MeasureConfig", "stages.measure:run", "measure a reward model on any rankings or pairs"
    ),
    "online": Stage(
        "settings.online:OnlineConfig", "stages.online:run", "optimise a policy against rewards (PPO, RLOO, GRPO, …)"
    ),
    "answer": Stage(
        "settings.evaluation:AnswerConfig", "evaluation.answer:run", "answer held-out prompts with every model"
    ),
    "evaluate": Stage(
        "settings.evaluation:EvaluateConfig", "evaluation.preference:run", "turn judgments into win rates"
    ),
    "agreement": Stage(
        "settings.evaluation:AgreementConfig", "evaluation.agreement:run", "measure how far labelers agree"
    ),
    "benchmark": Stage(
        "settings.benchmarks:BenchmarkConfig",
        "evaluation.benchmarks.stage:run",
        "run public benchmarks over several models: the alignment tax",
    ),
    "score": Stage("settings.benchmarks:ScoreConfig", "evaluation.score:run", "score anybody's samples by a metric"),
    "lm-eval": Stage("settings.benchmarks:LmEvalConfig", "evaluation.harness:run", "run lm-eval's tasks, offline"),
    "toxicity-classifier": Stage(
        "settings.benchmarks:ToxicityClassifierConfig",
        "stages.toxicity_classifier:run",
        "train a classifier of toxic text",
    ),
    "report": Stage("settings.report:ReportConfig", "report.page:run", "draw one page from run folders"),
    "overoptimize": Stage(
        "settings.overoptimization:OveroptimizeConfig",
        "lab.overoptimization:run",
        "measure gold scores while a proxy is optimised",
    ),
    "sweep": Stage("settings.sweep:SweepConfig", "lab.sweep:run", "run a stage at several values of its settings"),
    "world": Stage("settings.world:WorldConfig", "lab.world.build:run", "write the miniature world's data"),
    "rank": Stage("settings.world:RankConfig", "lab.world.rank:run_rank", "let the world's labelers rank candidates"),
    "judge": Stage("settings.judging:JudgeConfig", "recipe:judge", "let judges compare models' answers"),
    "claims": Stage(
        "settings.claims:ClaimsConfig", "recipe:run_claims", "check the paper's claims in the miniature world"
    ),
}
STUDIES = {  # what `claims` runs beside them; no commands of their own
    "subsets": Stage("settings.claims:SubsetsConfig", "lab.claims.subsets:run", "write subsets of rankings"),
    "marks": Stage("settings.claims:MarksConfig", "lab.claims.marks:run", "measure a reward model by ranking"),
    "gauge": Stage("settings.claims:GaugeConfig", "lab.claims.gauge:run", "measure a policy by prompt and document"),
    "samples": Stage("settings.claims:SamplesConfig", "lab.claims.samples:run", "sample a policy many times"),
    "bandit": Stage("settings.claims:BanditConfig", "lab.claims.bandit:run", "train on bandits"),
    "verdict": Stage("settings.claims:VerdictConfig", "lab.claims.verdict:run", "say whether claims show"),
}


def judge(config: JudgeConfig) -> None:
    """The stage of that name, with the miniature world's readers among its judges: evaluation does not know them."""
    from tutelage.evaluation.judging import run
    from tutelage.lab.world.judging import open_world

    run(config, open_world)


Steps = Sequence[tuple[str, Stage, StageConfig]]  # runs by name, in their order


def fill(value: Any, names: dict[str, str], place: str) -> Any:
    """A recipe's value with `{run}`, `{base}` and `{seed}` put in, at any depth.

    Raises:
        ValueError: naming the place, if a text becomes too long: each input may name the one above it many times.
    """
    if isinstance(value, str):
        for name, text in names.items():
            mark = "{" + name + "}"
            if len(value) + value.count(mark) * len(text) > LONGEST:
                raise ValueError(f"{place}: becomes longer than {LONGEST:,} characters; name fewer inputs in it")
            value = value.replace(mark, text)
        return value
    if isinstance(value, dict):
        return {k: fill(v, names, place) for k, v in value.items()}
    if isinstance(value, list):
        return [fill(v, names, place) for v in value]
    return value


def recipe_path(recipe: str) -> Path:
    """A recipe's file: a path, or the name of one in the package.

    Raises:
        ValueError: if there is neither.
    """
    named = RECIPES / f"{recipe}.yaml"
    if Path(recipe).is_file():
        return Path(recipe)
    if named.is_file():
        return named
    names = [p.stem for p in RECIPES.glob("*.yaml")]
    raise ValueError(f"recipe {recipe!r}: no such file, and no recipe of that name; {nearest(recipe, names)}")


BEST_OF_N = "best_of_n"  # an algorithm that is no run: what `best_of` of a stage asks for


def chosen(recipe: Path, content: Mapping[str, Any], algorithms: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """The recipe's stages without the algorithms that are not asked for, and without what other stages read of them:
    entries of mappings that are paths into their folders, and whatever names these entries in other settings. Unless
    `best_of_n` is asked for, no stage has a `best_of`.

    Raises:
        ValueError: naming the recipe and the nearest name, if it has no such algorithm.
    """
    stages = content["stages"]
    mappings = {name: settings for name, settings in stages.items() if isinstance(settings, dict)}
    own = [name for name, settings in mappings.items() if settings.get("stage", name) in ("online", "dpo")]
    known = [*own, *([BEST_OF_N] if any(settings.get("best_of") for settings in mappings.values()) else [])]
    asked = content.get("algorithms", known) if algorithms is None else algorithms
    where = recipe if algorithms is None else f"{recipe}: --algorithms"
    if not isinstance(asked, Sequence) or isinstance(asked, str):
        raise ValueError(f"{where}: algorithms: expected a list of runs, found {short(asked)}")
    for name in asked:
        if name not in known:
            raise ValueError(f"{where}: no algorithm {short(name)}; {nearest(str(name), known)}")
    left_out = tuple(f"{{run}}/{name}/" for name in own if name not in asked)
    kept = {name: settings for name, settings in stages.items() if name not in own or name in asked}
    unset = () if BEST_OF_N in asked else ("best_of",)
    return {name: _without(left_out, unset, s) if isinstance(s, dict) else s for name, s in kept.items()}


def _without(folders: tuple[str, ...], unset: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    mappings = [value for value in settings.values() if isinstance(value, dict)]
    gone = [k for mapping in mappings for k, v in mapping.items() if isinstance(v, str) and v.startswith(folders)]

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: v for k, v in value.items() if k not in gone and v not in gone}
        return [v for v in value if v not in gone] if isinstance(value, list) else value

    return {key: without(value) for key, value in settings.items() if key not in unset}


def plan(
    recipe: Path, folder: Path, seed: int, overwrite: bool = False, base: Path = BASE,
    given: Mapping[str, str] | None = None, algorithms: Sequence[str] | None = None,
) -> Steps:  # fmt: skip
    """The recipe's stages with validated settings; nothing is run before all of them are known to be sound.

    `given` holds the recipe's inputs by name, and settings of stages by `run.setting`, whose values are YAML;
    `algorithms` the runs that are made in place of those that the recipe would make.

    Raises:
        ValueError: naming recipe, stage, key and remedy.
    """
    content = read_yaml(recipe)
    unknown = set(content) - {"description", "inputs", "algorithms", "stages"}
    if unknown or not isinstance(content.get("stages"), dict):
        raise ValueError(
            f"{recipe}: a recipe has `description`, `inputs`, `algorithms` and `stages` (names with settings); "
            f"found {short(sorted(content))}"
        )
    content = {**content, "stages": chosen(recipe, content, algorithms)}
    names = {"run": str(folder), "base": str(base), "seed": str(seed)}
    inputs, changes = _given(recipe, content, given or {})
    for name, value in inputs.items():  # a default may name an input above it
        names[name] = str(fill(value, names, f"{recipe}: inputs: {name}"))
    return steps_of(recipe, content["stages"], folder, names, {"seed": seed, "overwrite": overwrite}, changes)


def steps_of(
    recipe: Path | str, stages: Mapping[str, Any], folder: Path, names: dict[str, str], common: Mapping[str, Any],
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> Steps:  # fmt: skip
    """Stages by run name, as a recipe has them, with validated settings.

    Args:
        recipe: what errors call them.
        names: what `{run}` and the like stand for.
        common: settings of all stages that set none.
        changes: by run name, settings that win.

    Raises:
        ValueError: naming recipe, stage, key and remedy.
    """
    steps = []
    for name, settings in stages.items():
        if not isinstance(settings, dict):
            raise ValueError(
                f"{recipe}: {name}: expected a mapping of settings, found {short(settings)}; `{{}}` is none"
            )
        if not RUN_NAME.fullmatch(name):
            raise ValueError(f"{recipe}: {short(name)} names a folder; use letters, digits, `-`, `_` and `.`")
        changed = (changes or {}).get(name, {})
        settings = dict(settings)
        verb = settings.pop("stage", name)
        stage = (STAGES | STUDIES).get(verb) if isinstance(verb, str) else None
        if stage is None:
            raise ValueError(f"{recipe}: {name}: unknown stage {short(verb)}; {nearest(str(verb), list(STAGES))}")
        if "output" in {*settings, *changed}:
            raise ValueError(f"{recipe}: {name}: output is the run's name in the recipe's folder; leave it out")
        place = f"{recipe}: {name}"
        values = {**common, **fill(settings, names, place), "output": folder / name}
        config = make(stage.config_class(), values, place, fill(changed, names, place))
        steps.append((name, stage, config))
    return steps


def _given(
    recipe: Path, content: Mapping[str, Any], given: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """The recipe's inputs, and changed settings by run name.

    Raises:
        ValueError: if an input is missing, or a name is neither an input nor a setting of a run.
    """
    inputs = content.get("inputs") or {}
    if not isinstance(inputs, dict):
        raise ValueError(f"{recipe}: inputs: expected a mapping of names to defaults, found {short(inputs)}")
    inputs = dict(inputs)
    changes: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        run, dot, _ = name.partition(".")
        runs = [each for each in content["stages"] if name.startswith(f"{each}.")]
        if name in inputs:
            inputs[name] = value
        elif runs:
            run = max(runs, key=len)  # a run's name may hold a dot
            changed = parse_yaml(f"{recipe}: --set {name}={short(value)}", value)
            changes.setdefault(run, {})[name.removeprefix(f"{run}.")] = changed
        else:
            what = nearest(run, list(content["stages"])) if dot else nearest(name, list(inputs))
            raise ValueError(f"{recipe}: --set {name}: no such {'run' if dot else 'input'}; {what}")
    if bad := [name for name, value in inputs.items() if isinstance(value, dict | list)]:
        raise ValueError(f"{recipe}: inputs: {bad[0]}: {short(inputs[bad[0]])} is no text; give a path")
    if missing := [f"--set {name}=…" for name, value in inputs.items() if value is None]:
        raise ValueError(f"{recipe}: {' and '.join(missing)} must be given: {content.get('description', '')}".strip())
    return inputs, changes


def run_recipe(steps: Steps, folder: Path, dry_run: bool = False) -> None:
    """Run all stages in order, saying in a line each what was done or skipped and how long it took.

    The last line is where to look: the report, or the folder if the recipe draws none. A dry run checks every stage
    as far as its inputs are there, and names the stages that it waits for.
    """
    for _, stage, _ in steps:
        stage.load()  # a package that is missing is met before the first step, not after an hour
    if dry_run:
        check_recipe(steps, folder)
        return
    for number, (name, _, config) in enumerate(steps):
        if done(folder / name) is None:  # what is missing is met now, not after a night
            with _naming(name):
                _check_inputs(config, [folder / earlier for earlier, *_ in steps[:number]])
    for number, (name, stage, config) in enumerate(steps, start=1):
        before, began = done(folder / name), time.perf_counter()
        with _naming(name):
            stage.run(config)
        took = f"{time.perf_counter() - began:.0f} s" if done(folder / name) != before else "done already"
        tell(f"[{number}/{len(steps)}] {name}: {took}")
    reports = [config.output / "report.html" for _, stage, config in steps if stage is STAGES["report"]]
    print(printable(str(reports[-1] if reports else folder)))


def run_claims(config: ClaimsConfig) -> None:
    """Run the experiments of the claims that are wanted: a folder `seed-N` for each seed, `large` for the base that all
    share, and `verdict` with what came of it. A run that is done is skipped, so claims and seeds may be added later.

    Raises:
        ValueError: as the stages do.
    """
    from tutelage.lab.claims.experiments import large_base
    from tutelage.lab.claims.registry import stages_for

    claims, scale, large = config.wanted, config.scale, config.output / "large"
    stages = stages_for(claims, scale)
    common = {"overwrite": config.overwrite}
    names = {"base": str(BASE), "large": str(large)}
    plans = [(config.output / f"seed-{seed}", seed, stages) for seed in config.used_seeds]
    if any("{large}" in str(settings) for settings in stages.values()):
        plans.insert(0, (large, 0, large_base(scale)))
    for folder, seed, of in plans:
        tell(f"claims: {folder}: {len(of)} runs")
        steps = steps_of("claims", of, folder, {**names, "run": str(folder)}, {**common, "seed": seed})
        run_recipe(steps, folder, config.dry_run)
    if config.dry_run:
        raise DryRun
    verdict = {
        "runs": str(config.output),
        "seeds": config.used_seeds,
        "claims": claims,
        "fast": config.fast,
        "scale": scale,
    }
    ((_, stage, last),) = steps_of("claims", {"verdict": verdict}, config.output, {}, {"overwrite": True})
    stage.run(last)


def check_recipe(steps: Steps, folder: Path) -> None:
    """The dry run of a recipe.

    Raises:
        ValueError: naming the run, if an input is missing or broken that no stage before it makes, or as the stages do.
    """
    waiting: list[str] = []
    for number, (name, stage, config) in enumerate(steps, start=1):
        waits = [other for other in waiting if _reads(config, folder, other)]
        whole = False
        with _naming(name):
            if waits:
                _check_inputs(config, [folder / other for other in waiting])
            else:
                whole = stage.run(config.model_copy(update={"dry_run": True}))
        state = f"waits for {', '.join(waits)}" if waits else "done already" if whole else "can start"
        if not whole:
            waiting.append(name)
        tell(f"[{number}/{len(steps)}] {name}: {state}")
    print("dry run: nothing was written")


@contextmanager
def _naming(run: str) -> Iterator[None]:
    """Errors of a run begin with its name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{run}: {error}") from None


def _check_inputs(config: StageConfig, unmade: Sequence[Path]) -> None:
    """See that what a waiting stage reads is there and can be read, but for what stages before it have yet to make.

    Models are not loaded, nor anything from the hub.

    Raises:
        ValueError: naming setting and path.
    """
    for setting, path in inputs_of(config, *config.INPUTS).items():
        if any(run in (path, *path.parents) for run in unmade):
            continue
        if not os.path.exists(path):
            raise ValueError(f"{setting}: {path}: no such file or folder")
        if read := READERS.get(config.INPUTS[setting.partition(".")[0]]):
            try:
                read(str(path))
            except ValueError as error:
                raise ValueError(f"{setting}: {error}") from None


def _reads(config: StageConfig, folder: Path, name: str) -> bool:
    """Whether a stage reads something that another one of the recipe has yet to make."""
    values = flat(config.model_dump(mode="json", exclude={"output"})).values()
    paths = [Path(each) for value in values for each in named("", value).values() if isinstance(each, str)]
    return any(path == folder or folder / name in (path, *path.parents) for path in paths)
