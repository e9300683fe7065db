"""Settings: unknown keys and bad values are named with their remedy, and every setting has a help text."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from tutelage.recipe import PACKAGE, RECIPES, STAGES, _reads, plan, recipe_path, run_recipe
from tutelage.settings.algorithms import PPO
from tutelage.settings.common import Group, StageConfig, make, names_of, nearest, to_plain
from tutelage.settings.online import OnlineConfig
from tutelage.settings.options import Parser, add_settings, settings
from tutelage.settings.pretrain import PretrainConfig
from tutelage.settings.reward import RewardConfig
from tutelage.settings.sft import SftConfig
from tutelage.settings.strict_yaml import read_yaml
from tutelage.settings.training import AdamW

SFT = {"model": "m", "demonstrations": "d", "output": "o"}


def test_unknown_keys_name_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown key 'learning_rat'; did you mean 'optimizer.learning_rate'\?"):
        make(SftConfig, SFT | {"learning_rat": 1}, "r.yaml")
    with pytest.raises(ValueError, match=r"unknown key 'optimizer.lr'; .*'?optimizer"):
        make(SftConfig, SFT | {"optimizer": {"lr": 1}}, "r.yaml")
    with pytest.raises(ValueError, match=r"unknown key 'temperature'; did you mean 'sampler.temperature'\?"):
        make(OnlineConfig, {"temperature": 1}, "r.yaml")
    with pytest.raises(ValueError, match=r"unknown key 'zzzz'; known: .*batch_size, .*epochs"):
        make(SftConfig, SFT | {"zzzz": 1}, "r.yaml")
    with pytest.raises(ValueError, match=r"'a'(.|\n)*'b'"):
        make(SftConfig, SFT | {"a": 1, "b": 2}, "r.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, r"r.yaml: epochs=0: .*greater than 0"),
        ({"epochs": "many"}, r"r.yaml: epochs='many': .*integer"),
        ({"epochs": 1.5}, r"r.yaml: epochs=1.5: "),
        ({"residual_dropout": 1.5}, r"r.yaml: residual_dropout=1.5: .*less than or equal to 1"),
        ({"optimizer": {"learning_rate": 0}}, r"r.yaml: optimizer.learning_rate=0: .*greater than 0"),
        ({"optimizer.betas": [0.9]}, r"r.yaml: optimizer.betas.*"),
        ({"optimizer": 3}, r"r.yaml: optimizer=3: "),
        ({"optimizer": "sgd"}, r"r.yaml: optimizer.name='sgd': .*'adamw'"),
        ({"model": None}, r"r.yaml: model=None: .*string"),
    ],
)
def test_bad_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make(SftConfig, SFT | values, "r.yaml")


@pytest.mark.parametrize("verb", STAGES)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_no_number_is_infinite(verb: str, value: float) -> None:
    kind = STAGES[verb].config_class()
    for name in names_of(kind):
        field = kind.model_fields.get(name)
        with pytest.raises(ValueError, match=rf"r.yaml: {name}((\.\w+)*=| is no setting of \w+; it is a setting of)"):
            make(kind, {name: {"a": value} if field and "dict" in str(field.annotation) else value}, "r.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heads": 3}, r"r.yaml: hidden_size=128 is not divided by heads=3 into even parts, .*; take 126"),
        ({"hidden_size": 12, "heads": 4}, "hidden_size=12 is not divided by heads=4 into even parts, .*; take 16"),
        ({"context": 64}, r"sequence_length=128 is more than context=64; raise context to it"),
        ({"layers": 10**9}, r"make 2.0e\+14 weights; .* take smaller ones"),
        ({"layers": 10**18}, r"r.yaml: layers=1000000000000000000: .*less than or equal to 1000000000000"),
        ({"total_tokens": 10**18}, "r.yaml: total_tokens=1000000000000000000: "),
        ({"total_tokens": 10**5000}, "r.yaml: total_tokens=int of absurd size: "),
        ({"seed": -1}, "r.yaml: seed=-1: "),
        ({"seed": 10**18}, "r.yaml: seed=1000000000000000000: "),
        ({"optimizer": {"betas": [0.9, 1]}}, r"r.yaml: optimizer.betas.1=1: .*less than 1"),
        ({"texts": "x" * 300}, r"r.yaml: texts='x{76}\.\.\.: is too long for a file's name; give another path"),
        ({"output": "a\0b"}, r"r.yaml: output='a\\x00b': holds a character that no file's name can have"),
        ({"valid_texts": "\ud800"}, "r.yaml: valid_texts='.ud800': holds a character that no file's name can have"),
        ({"texts": "/dev/zero"}, "r.yaml: texts='/dev/zero': is a pipe or device, .*; write it to a file"),
        ({"layers": ["x" * 10**6]}, r"r.yaml: layers=\['x{75}\.\.\.: "),
    ],
)
def test_absurd_sizes_are_refused(values: dict[str, object], message: str) -> None:
    make(PretrainConfig, {"texts": "t", "output": "o"}, "r.yaml")
    with pytest.raises(ValueError, match=message) as caught:
        make(PretrainConfig, {"texts": "t", "output": "o"} | values, "r.yaml")
    assert len(str(caught.value)) < 300


def test_pipes_and_devices_are_refused_in_mappings_too(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"^r.yaml: valid='.*/pipe': is a pipe or device"):
        make(
            RewardConfig,
            {"model": "m", "rankings": "r", "output": "o", "valid": {"a": str(tmp_path / "pipe")}},
            "r.yaml",
        )


@pytest.mark.parametrize(
    ("verb", "values", "message"),
    [
        ("online", {"mini_batch_size": 3}, "mini_batch_size=3 does not divide batch_size=512"),
        ("collect", {}, "give either policy, a model folder, or policies"),
        ("collect", {"policy": "m", "policies": {"a": "m"}}, "give either policy, a model folder, or policies"),
        ("collect", {"policy": "m", "weights": {"a": 1}}, "'a' is not among the policies ['policy']"),
        ("collect", {"policies": {"b": "m"}, "few_shot": ["a"]}, "'a' is not among the policies ['b']"),
        ("collect", {"policies": {"b": "m"}, "few_shot": ["b"]}, "few_shot needs `examples`"),
        ("collect", {"policy": "m", "k": "1..3"}, "k='1..3': expected a number or range from 2"),
        ("collect", {"policy": "m", "k": "5..4"}, "k='5..4': expected a number or range from 2"),
        ("answer", {"prompted": {"x": "b"}, "examples": "d"}, "'b' is not among the models ['a']"),
        ("answer", {"greedy": ["b"]}, "'b' is not among the models ['a']"),
        ("answer", {"best_of": "b", "reward_model": "r"}, "'b' is not among the models ['a']"),
        ("answer", {"reference": "b"}, "'b' is not among the models ['a']"),
        ("answer", {"prompted": {"x": "a"}}, "prompted needs `examples`"),
        ("answer", {"best_of": "a"}, "best_of needs a reward_model"),
    ],
)
def test_settings_that_do_not_go_together(verb: str, values: dict[str, object], message: str) -> None:
    """They are refused before any stage of a recipe has run."""
    enough = {
        "online": {"model": "m", "reward_model": "r", "prompts": "p"},
        "collect": {"prompts": "p"},
        "answer": {"prompts": "p", "models": {"a": "m"}},
    }[verb]
    with pytest.raises(ValueError, match="^" + re.escape(f"r.yaml: {message}")):
        make(STAGES[verb].config_class(), {"output": "o", **enough, **values}, "r.yaml")


def test_a_missing_setting_says_what_it_is() -> None:
    with pytest.raises(ValueError, match=r"^r.yaml: demonstrations is required: Prompts with completions"):
        make(SftConfig, {"model": "m", "output": "o"}, "r.yaml")


def test_the_papers_numbers_are_the_defaults() -> None:
    sft = make(SftConfig, SFT, "")
    assert (sft.epochs, sft.batch_size) == (16, 32)
    assert (sft.optimizer.learning_rate, sft.optimizer.betas) == (9.65e-6, (0.9, 0.95))
    ppo = make(OnlineConfig, {"model": "m", "reward_model": "r", "prompts": "p", "output": "o"}, "")
    assert (ppo.kl_coef, ppo.algorithm.cliprange, ppo.algorithm.gamma) == (0.02, 0.2, 1.0)
    assert (ppo.batch_size, ppo.mini_batch_size, ppo.inner_epochs, ppo.total_episodes) == (512, 64, 1, 256_000)


def test_a_group_in_part_leaves_the_rest_as_the_stage_has_it() -> None:
    """Of reinforcement learning Adam's epsilon is 1e-5; that of the class is 1e-8."""
    files = {"model": "m", "reward_model": "r", "prompts": "p", "output": Path("o")}
    for optimizer in ({"learning_rate": 1e-4}, AdamW(learning_rate=1e-4)):
        config = OnlineConfig(**files, optimizer=optimizer)  # type: ignore[arg-type]
        assert (config.optimizer.learning_rate, config.optimizer.epsilon) == (1e-4, 1e-5)
        assert config.optimizer.warmup_steps == 10
    assert OnlineConfig(**files, algorithm="ppo").algorithm == PPO()  # type: ignore[arg-type]
    values = files | {"optimizer": {"weight_decay": 0.5}, "optimizer.learning_rate": 1e-3, "algorithm": "ppo"}
    config = make(OnlineConfig, values | {"algorithm.lam": 0.5}, "r.yaml")
    assert (config.optimizer.weight_decay, config.optimizer.learning_rate, config.algorithm.lam) == (0.5, 1e-3, 0.5)


FILES = {"model": "m", "reward_model": "r", "prompts": "p", "output": "o"}


@pytest.mark.parametrize(
    "layers",
    [
        ({"optimizer.learning_rate": 1e-3}, {"optimizer.warmup_steps": 5}),
        ({"optimizer": {"learning_rate": 1, "warmup_steps": 5}}, {"optimizer.learning_rate": 1e-3}),
        ({"optimizer.learning_rate": 1e-3, "optimizer": {"warmup_steps": 5, "learning_rate": 1}}, {}),
        ({"optimizer.learning_rate": 1, "optimizer": {"warmup_steps": 5}}, {"optimizer": {"learning_rate": 1e-3}}),
        ({"optimizer": {"learning_rate": 1e-3}}, {"optimizer": "adamw", "optimizer.warmup_steps": 5}),
    ],
)
def test_what_wins_over_a_group_leaves_the_rest_of_it(layers: tuple[dict[str, Any], dict[str, Any]]) -> None:
    config = make(OnlineConfig, FILES | layers[0], "r.yaml", layers[1])
    assert (config.optimizer.learning_rate, config.optimizer.warmup_steps) == (1e-3, 5)


@pytest.mark.parametrize(
    "values",
    [{"optimizer": 5, "optimizer.learning_rate": 1}, {"optimizer": PPO()}, {"sampler": AdamW(learning_rate=1)}],
)
def test_what_is_no_such_group_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"r.yaml: (optimizer|sampler)=.*: Input should be a valid dictionary"):
        make(OnlineConfig, FILES | values, "r.yaml")


class Other(Group):
    """A second algorithm."""

    name: Literal["other"] = "other"
    """Which."""
    cliprange: float = 0.5
    """Its own default."""
    only: int = 1
    """What PPO has not."""


class Choice(StageConfig):
    """A stage with two algorithms."""

    algorithm: Annotated[PPO | Other, Field(discriminator="name")] = PPO(cliprange=0.3)
    """Which algorithm."""


def test_a_name_chooses_among_classes() -> None:
    """With the defaults of the class that is chosen, but for the stage's own class, whose are the stage's."""
    output = {"output": Path("o")}
    assert Choice(**output, algorithm=Other()).algorithm == Other()
    assert Choice(**output, algorithm=Other(cliprange=0.1)).algorithm == Other(cliprange=0.1)
    assert make(Choice, {"output": "o", "algorithm": "other"}, "").algorithm == Other()
    typed = {"algorithm.name": "other", "algorithm.only": 3}
    assert make(Choice, {"output": "o"}, "", typed).algorithm == Other(only=3)
    assert make(Choice, {"output": "o", "algorithm.lam": 0.5}, "").algorithm == PPO(cliprange=0.3, lam=0.5)
    with pytest.raises(ValueError, match=r"algorithm\.name='ppp': expected one of 'ppo', 'other'"):
        make(Choice, {"output": "o", "algorithm": "ppp"}, "")
    with pytest.raises(ValueError, match=r"algorithm\.only is no setting of ppo; it is a setting of other"):
        make(Choice, {"output": "o", "algorithm.only": 1}, "")
    parser = Parser()
    add_settings(parser, Choice)
    arguments = parser.parse_args(["--output", "o", "--algorithm", "other", "--algorithm.only", "7"])
    assert settings(Choice, arguments).algorithm == Other(only=7)


def test_an_iteration_cannot_turn_the_kl_coefficient_negative() -> None:
    values = FILES | {"kl_target": 1.0, "batch_size": 500, "mini_batch_size": 50}
    with pytest.raises(ValueError, match="kl_horizon=100 is so short"):
        make(OnlineConfig, values | {"kl_horizon": 100}, "")
    assert make(OnlineConfig, values | {"kl_horizon": 101}, "").kl_horizon == 101


def test_a_switch_is_no_number() -> None:
    with pytest.raises(ValueError, match="epochs=True: expected a number"):
        make(SftConfig, SFT | {"epochs": True}, "")


def test_a_config_is_frozen() -> None:
    config = make(SftConfig, SFT, "")
    with pytest.raises(ValueError, match="frozen"):
        config.epochs = 3  # type: ignore[misc]
    assert {"output", "overwrite"}.isdisjoint(to_plain(config))
    assert to_plain(config)["epochs"] == 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "expected a mapping of settings, found list"),
        ("a: [", "not valid YAML"),
        ("", "expected .*, found NoneType"),
    ],
)
def test_bad_yaml(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    with pytest.raises(ValueError, match="no such file"):
        read_yaml(path)
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"{path}: {message}"):
        read_yaml(path)


def test_nearest() -> None:
    assert nearest("seeed", ["seed", "output"]) == "did you mean 'seed'?"
    assert nearest("xyz", ["seed", "output"]) == "known: output, seed"


@pytest.mark.parametrize("verb", STAGES)
def test_every_setting_has_its_help(verb: str) -> None:
    kind = STAGES[verb].config_class()
    assert issubclass(kind, StageConfig)
    assert kind.__doc__
    assert [name for name, field in kind.model_fields.items() if not field.description] == []


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_are_sound(recipe: Path) -> None:
    """Every stage's settings are valid, and what a stage reads of another's folder is written before."""
    wanted = [name for name, default in (read_yaml(recipe).get("inputs") or {}).items() if default is None]
    steps = plan(recipe, Path("/runs"), seed=3, given=dict.fromkeys(wanted, "mine"))
    ran: set[str] = set()
    for name, _, config in steps:
        for value in (str(v) for part in config.model_dump().values() for v in _leaves(part)):
            if value.startswith("/runs/") and value != f"/runs/{name}":
                assert value.split("/")[2] in ran, f"{name} reads {value}"
        ran.add(name)
    assert all(config.seed == 3 for _, _, config in steps)
    assert all(config.output == Path("/runs") / name for name, _, config in steps)
    assert PACKAGE.is_dir()


def _leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for v in value.values() for leaf in _leaves(v)]
    if isinstance(value, list | tuple):
        return [leaf for v in value for leaf in _leaves(v)]
    return [value]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: {sfft: {}}", r"sfft: unknown stage 'sfft'; did you mean 'sft'\?"),
        ("stages: {sft: {epoch: 1}}", r"sft: unknown key 'epoch'; did you mean 'epochs'\?"),
        ("stages: {sft: }", "sft: expected a mapping of settings, found None"),
        ("stages: {a: 3}", "a: expected a mapping of settings, found 3"),
        ("stages: {a: {stage: dpo}}\nalgorithms: a", "algorithms: expected a list of runs, found 'a'"),
        ("stages: {aa: {stage: dpo}}\nalgorithms: [ab]", r"no algorithm 'ab'; did you mean 'aa'\?"),
        ("stages: {}\ninputs: [a]", r"inputs: expected a mapping of names to defaults, found \['a'\]"),
        ("stages: {x: {stage: [a]}}", r"x: unknown stage \['a'\]"),
        ("stages: {../x: {stage: world}}", r"'../x' names a folder; use letters, digits"),
        ("stages: {/etc: {stage: world}}", "'/etc' names a folder"),
        ("stages: {..: {stage: world}}", r"'\.\.' names a folder"),
        ("stages: {}\ninputs: {a: [b]}", r"inputs: a: \['b'\] is no text"),
        ("stages: {a: {stage: sft, model: m, demonstrations: d}, a: {}}", "not valid YAML: line 1: the name 'a' comes"),
        (
            "inputs: {a0: xxxxxxxxxx" + "".join(f", a{i}: '{{a{i - 1}}}{{a{i - 1}}}'" for i in range(1, 40)) + "}\n"
            "stages: {}",
            "inputs: a14: becomes longer than 100,000 characters; name fewer inputs in it",
        ),
        ("stages: [sft]", "a recipe has `description`, `inputs`, `algorithms` and `stages`"),
        ("stagess: {}", r"a recipe has `description`, `inputs`, `algorithms` and `stages`.*found \['stagess'\]"),
    ],
)
def test_bad_recipes(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{path}: {message}"):
        plan(path, tmp_path, 0)


def test_algorithms_are_chosen_and_no_stage_reads_the_others(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "algorithms: [a]\n"
        "stages:\n"
        "  a: {stage: dpo, model: m, rankings: r}\n"
        "  ab: {stage: dpo, model: m, rankings: r}\n"
        "  answers: {stage: answer, prompts: p, models: {x: m, a: '{run}/a/model', b: '{run}/ab/model', ab: m}, "
        "greedy: [x, b, ab], examples: e, prompted: {p: x, q: b}}\n"
        "  rloo: {stage: online, model: m, reward_model: w, prompts: p, algorithm: {name: rloo}}\n"
        "  more: {stage: online, model: m, reward_model: w, prompts: p, algorithm: {name: rloo}}\n"
    )
    names = {}
    for asked in (None, ["a"], ["ab"], ["ab", "a"]):
        steps = plan(path, Path("/out"), seed=0, algorithms=asked)
        names[str(asked)] = [name for name, *_ in steps], list(steps[-1][2].models)  # type: ignore[attr-defined]
        assert steps[-1][2].greedy == ["x", *(["b"] if asked and "ab" in asked else []), "ab"]  # type: ignore[attr-defined]
    assert names["None"] == names["['a']"] == (["a", "answers"], ["x", "a", "ab"])
    assert names["['ab']"] == (["ab", "answers"], ["x", "b", "ab"])
    assert names["['ab', 'a']"] == (["a", "ab", "answers"], ["x", "a", "b", "ab"])
    *_, (_, _, prompted), (name, _, more) = plan(path, Path("/out"), 0, algorithms=["more"])
    assert prompted.prompted == {"p": "x"}  # type: ignore[attr-defined]
    assert (name, more.algorithm.name) == ("more", "rloo")  # type: ignore[attr-defined]


def test_best_of_n_is_chosen_as_algorithms_are(tmp_path: Path) -> None:
    """It is no run: where it is not asked for, the rows of `answer` go without it."""
    path = tmp_path / "r.yaml"
    answers = "  answers: {stage: answer, prompts: p, models: {x: m}, reward_model: w, best_of: x, best_of_n: 4}\n"
    path.write_text(f"stages:\n  a: {{stage: dpo, model: m, rankings: r}}\n{answers}")

    def planned(asked: list[str] | None) -> tuple[list[str], str | None]:
        steps = plan(path, Path("/out"), seed=0, algorithms=asked)
        return [name for name, *_ in steps], steps[-1][2].best_of  # type: ignore[attr-defined]

    assert planned(None) == planned(["a", "best_of_n"]) == (["a", "answers"], "x")
    assert planned(["a"]) == (["a", "answers"], None)
    assert planned(["best_of_n"]) == (["answers"], "x")
    with pytest.raises(ValueError, match=r"no algorithm 'best_of'; did you mean 'best_of_n'\?"):
        planned(["best_of"])
    path.write_text(f"algorithms: [a]\n{path.read_text()}")
    assert planned(None) == (["a", "answers"], None)
    path.write_text(path.read_text().replace("best_of: x", "best_of: null"))
    with pytest.raises(ValueError, match=r"no algorithm 'best_of_n'; known: a"):
        planned(["best_of_n"])


def test_the_demo_shows_the_best_of_n_unless_other_algorithms_are_asked_for() -> None:
    def answering(asked: list[str] | None) -> Any:
        return next(
            c for name, _, c in plan(recipe_path("demo"), Path("/out"), 0, algorithms=asked) if name == "answers"
        )

    assert list(answering(None).models) == ["base", "sft", "ppo", "ppo_ptx"]
    assert answering(None).labels[-1] == "best_of_8"
    assert answering(["rloo", "best_of_n"]).labels[-1] == "best_of_8"
    assert answering(["rloo"]).labels == ["base", "sft", "rloo", "prompted", "sft_greedy", "rloo_greedy"]


@pytest.mark.parametrize("recipe", ["rejection", "iterated_dpo", "iterated_rlhf"])
def test_what_is_held_out_stays_held_out_over_rounds(recipe: str) -> None:
    """The files that measure are the same in all rounds, and no stage that trains reads one, or the test prompts."""
    steps = plan(recipe_path(recipe), Path("/out"), 0)
    measures = {"valid", "valid_rankings", "valid_demonstrations", "valid_candidates", "heldout_reward_model"}
    files: dict[str, set[str]] = {}
    for name, stage, config in steps:
        if stage not in (STAGES["answer"], STAGES["agreement"]) and name != "candidates_valid":
            trained = {key: value for key, value in config if key in config.INPUTS and key not in measures}
            read = str(trained)
            assert not [each for each in ("_test", "_valid", "heldout", "corpus_valid") if each in read], name
        for key in measures & set(type(config).model_fields):
            files.setdefault(f"{stage.config}.{key}", set()).add(str(getattr(config, key)))
    assert len(files["settings.reward:RewardConfig.valid"]) == 1
    assert len(files.get("settings.dpo:DpoConfig.valid_rankings", {1})) == 1


def test_a_waiting_stage_waits_for_each_of_several_sources(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("stages:\n  rm: {stage: reward, model: m, rankings: [a.jsonl, '{run}/rank_2/r.jsonl']}\n")
    ((_, _, config),) = plan(path, Path("/out"), 0)
    assert [_reads(config, Path("/out"), name) for name in ("rank_2", "rank")] == [True, False]
    for wrong, fault in (("[]", "at least 1 item"), ("[a, a]", "names 'a' twice"), ("5", "expected a path or hub id")):
        path.write_text(f"stages:\n  rm: {{stage: reward, model: m, rankings: {wrong}}}\n")
        with pytest.raises(ValueError, match=rf"rm: rankings=.*{fault}"):
            plan(path, Path("/out"), 0)


def test_recipe_values_are_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "stages:\n"
        "  sft: {model: '{base}', demonstrations: '{run}/world/d.jsonl', seed: 9}\n"
        "  rm: {stage: reward, model: '{run}/sft/model', rankings: r, valid: {a: '{run}/x'}}\n"
    )
    (_, _, sft), (name, stage, reward) = plan(path, Path("/out"), seed=5)
    assert sft.demonstrations == "/out/world/d.jsonl"  # type: ignore[attr-defined]
    assert (sft.seed, reward.seed) == (9, 5)
    assert (name, stage, reward.output) == ("rm", STAGES["reward"], Path("/out/rm"))
    assert reward.valid == {"a": "/out/x"}  # type: ignore[attr-defined]


def test_a_missing_input_stops_a_recipe_before_its_first_stage(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    world = "  world: {documents: 20, valid_documents: 5, sft_prompts: 5}\n"
    for source in (tmp_path / "nope.jsonl", "{run}/wrld/prompts_test.jsonl"):
        path.write_text(
            f"stages:\n{world}  answers: {{stage: answer, prompts: '{source}', models: {{a: '{{base}}'}}}}\n"
        )
        with pytest.raises(ValueError, match=r"answers: prompts: .*: no such file or folder"):
            run_recipe(plan(path, tmp_path / "runs", 0), tmp_path / "runs")
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("key", "name"), [("lr", "learning_rate"), ("optimizer.lr", "optimizer.learning_rate"), ("--bs", "batch_size")]
)
def test_initials_are_understood(key: str, name: str) -> None:
    known = ["output", "batch_size", "learning_rate" if "." not in key else "x", "optimizer.learning_rate", "loss.r"]
    assert nearest(key, known).startswith(f"did you mean '{name}'")
