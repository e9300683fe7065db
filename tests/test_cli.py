"""A user's mistake at the command line ends with one line that names it, exit code 2 and no traceback."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import AfterValidator, BaseModel

from tutelage.cli import main
from tutelage.recipe import BASE, STAGES, plan
from tutelage.settings.options import Parser, add_settings, settings


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail properly; returns the line it ended with."""

    def run(*argv: str) -> str:
        assert main(argv) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("tutelage: ")
        return line

    return run


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sft", "--learning-rat", "1"], "unknown option '--learning-rat'; did you mean '--optimizer.learning-rate'?"),
        (["sft", "--learning-rat=1"], "unknown option '--learning-rat=1'; did you mean '--optimizer.learning-rate'?"),
        (["demo", "--sede", "3"], "unknown option '--sede'; did you mean '--seed'?"),
        (["--vresion"], "unknown option '--vresion'; did you mean '--version'?"),
        (["--"], "tutelage: "),
        (["sfft"], "invalid choice: 'sfft'"),
        (["sft", "--epochs"], "argument --epochs: expected one argument; see tutelage sft --help"),
        (["sft", "--model", "m", "--output", "o"], "demonstrations is required: Prompts with completions"),
        (["run", "no-such-recipe", "--output", "o"], "recipe 'no-such-recipe': no such file"),
        (["run", "demoo", "--output", "o"], "did you mean 'demo'?"),
        (["run", "demo"], "the following arguments are required: --output"),
        (["reward", "--valid", "{a: [", "--output", "o"], "valid='{a: [': not valid YAML"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_mistakes(argv: list[str], message: str, mistake: Callable[..., str]) -> None:
    assert message in mistake(*argv)


@pytest.mark.parametrize(
    ("argv", "option"),
    [
        (["chat", "m"], ["--temperature", "nan"]),
        (["chat", "m"], ["--temperature", "inf"]),
        (["chat", "m"], ["--temperature=-1"]),
        (["chat", "m"], ["--max-new-tokens", "0"]),
        (["compare", "m", "--prompts", "p"], ["--limit=-1"]),
        (["compare", "m", "--prompts", "p"], ["--seed", "1e18"]),
        (["run", "demo", "--output", "o"], ["--seed=-1"]),
        (["label", "serve", "w"], ["--port", "99999"]),
    ],
    ids=lambda x: " ".join(x),
)
def test_mistakes_in_numbers(argv: list[str], option: list[str], mistake: Callable[..., str]) -> None:
    name, _, value = " ".join(option).replace("=", " ").partition(" ")
    assert f"argument {name}: '{value}': Input should be" in mistake(*argv, *option)


def test_mistakes_in_values(mistake: Callable[..., str]) -> None:
    sft = ["sft", "--model", "m", "--demonstrations", "d", "--output", "o"]
    assert "command line: epochs=0: " in mistake(*sft, "--epochs", "0")
    assert "command line: epochs='many': " in mistake(*sft, "--epochs", "many")


def test_mistakes_in_a_config_file(mistake: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    assert f"{path}: no such file" in mistake("sft", "--config", str(path))
    path.write_text("model: m\ndemonstrations: d\noutput: o\nepoch: 3\n")
    assert f"{path}: unknown key 'epoch'; did you mean 'epochs'?" in mistake("sft", "--config", str(path))
    path.write_text("model: [\n")
    assert f"{path}: not valid YAML" in mistake("sft", "--config", str(path))


def test_mistakes_in_files(
    mistake: Callable[..., str], tmp_path: Path, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, model = tmp_path / "data.jsonl", str(folders("llama"))

    def sft(file: str = "data.jsonl", model: str = model, output: str = "out") -> str:
        return mistake("sft", "--model", model, "--demonstrations", file, "--output", output, "--overwrite")

    assert "demonstrations: none.jsonl: no such file or folder" in sft("none.jsonl")
    assert not (tmp_path / "out").exists()
    data.write_text("")
    assert "data.jsonl" in sft()
    data.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    assert "data.jsonl:2: not valid JSON" in sft()
    data.write_text('{"question": "a", "completion": "b"}\n')
    assert "data.jsonl:1" in sft()
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    assert "model: none: no such file or folder" in sft(model="none")
    assert f"{tmp_path}: no tokenizer found here" in sft(model=str(tmp_path))
    assert "tiny/model: no tokenizer found here" in sft(model="tiny/model")  # a hub id that cannot be had
    assert "is a file; choose a folder" in sft(output="data.jsonl")


def test_a_folder_that_cannot_be_written(mistake: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    argv = ["--model", str(tmp_path), "--demonstrations", str(tmp_path / "d.jsonl")]
    assert "/proc/none" in mistake("sft", *argv, "--output", "/proc/none/run")


def test_options_win_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: m\nrankings: r\noutput: o\nepochs: 2\nbatch_size: 4\noptimizer: {weight_decay: 0.5}\n")
    ran = []
    monkeypatch.setattr(type(STAGES["reward"]), "run", lambda self, config: ran.append(config))
    argv = ["reward", "--config", str(path), "--epochs", "3", "--valid", "{a: x}", "--optimizer.learning-rate", "1e-5"]
    assert main([*argv, "--overwrite", "--model", "07"]) == 0
    (config,) = ran
    assert (config.epochs, config.batch_size, config.valid, config.optimizer.learning_rate) == (3, 4, {"a": "x"}, 1e-5)
    assert config.optimizer.weight_decay == 0.5
    assert config.overwrite
    assert config.model == "07"


def test_texts_that_may_be_missing_are_taken_as_typed() -> None:
    """Else YAML would read a model's name as a number."""

    class Probe(BaseModel):
        text: str | None = None
        checked: typing.Annotated[str, AfterValidator(str.upper)] | None = None
        path: Path | None = None

    parser = Parser()
    add_settings(parser, Probe)
    probe = settings(Probe, parser.parse_args(["--text", "07", "--checked", "1e5", "--path", "null"]))
    assert (probe.text, probe.checked, probe.path) == ("07", "1E5", Path("null"))


@pytest.mark.parametrize(
    "given",
    [
        ["--models", "sft=a/b,ppo=c"],
        ["--models", "sft=a/b", "--models", "ppo=c"],
        ["--models", "{sft: a/b, ppo: c}"],
    ],
)
def test_mappings_are_given_as_names_and_values(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(type(STAGES["answer"]), "run", lambda self, config: ran.append(config))
    assert main(["answer", "--prompts", "p", "--output", "o", *given]) == 0
    assert ran[0].models == {"sft": "a/b", "ppo": "c"}


def test_every_mapping_is_given_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr("tutelage.recipe.Stage.run", lambda self, config: ran.append(config))
    number = 0
    besides = {"weights": ["--policies", "a=x,b=y"], "prompted": ["--models", "1=x,2=y", "--examples", "d"]}
    for verb, stage in STAGES.items():
        fields = stage.config_class().model_fields
        required = [w for n, f in fields.items() if f.is_required() for w in (f"--{n.replace('_', '-')}", "c=1")]
        for name, field in fields.items():
            if typing.get_origin(field.annotation) is dict and not field.is_required():
                mapping = [f"--{name.replace('_', '-')}", "a=1,b=2"]
                assert main([verb, *required, *mapping, *besides.get(name, [])]) == 0
                values = [
                    getattr(value, getattr(value, "INPUT", ""), value) for value in getattr(ran[-1], name).values()
                ]
                assert list(map(float, values)) == [1, 2]
                number += 1
    assert number >= 4  # policies, weights, valid, prompted


def test_mistakes_in_mappings(mistake: Callable[..., str]) -> None:
    answer = ["answer", "--prompts", "p", "--output", "o", "--models"]
    assert "command line: models='runs/sft': expected name=value, or name=value,name=value" in mistake(
        *answer, "runs/sft"
    )
    assert "command line: models='a=y': a is named twice" in mistake(*answer, "a=x,a=y")
    assert "command line: models='': expected name=value" in mistake(*answer, "a=x,")


def test_what_a_recipe_asks_for(mistake: Callable[..., str], tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "description: Mine.\ninputs: {model:, data:, prompts: '{data}', more: '{prompts}/x'}\nstages:\n"
        "  sft: {model: '{model}', demonstrations: '{data}', epochs: 2}\n"
        "  ppo: {stage: online, model: '{more}', reward_model: '{run}/m', prompts: '{prompts}'}\n"
    )
    run = ["run", str(recipe), "--output", str(tmp_path / "o")]
    assert f"{recipe}: --set model=… and --set data=… must be given: Mine." in mistake(*run)
    full = [*run, "--set", "model=m", "--set", "data=d"]
    assert "--set dat: no such input; did you mean 'data'?" in mistake(*full, "--set", "dat=x")
    assert "--set sftt.epochs: no such run; did you mean 'sft'?" in mistake(*full, "--set", "sftt.epochs=1")
    assert "sft: unknown key 'epoch'; did you mean 'epochs'?" in mistake(*full, "--set", "sft.epoch=1")
    assert "--set sft.epochs='[': not valid YAML" in mistake(*full, "--set", "sft.epochs=[")
    assert "--set data: expected NAME=VALUE" in mistake(*run, "--set", "data")
    given = {"model": "m", "data": "d", "sft.epochs": "7", "ppo.kl_coef": "1e-3"}
    (_, _, sft), (_, _, ppo) = plan(recipe, tmp_path, 0, given=given)
    assert (sft.model, sft.demonstrations, sft.epochs) == ("m", "d", 7)
    assert (ppo.prompts, ppo.model, ppo.kl_coef) == ("d", "d/x", 1e-3)


def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(self: object, config: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(STAGES["sft"]), "run", interrupted)
    assert main(["sft", "--model", "m", "--demonstrations", "d", "--output", "o"]) == 130
    assert "the same command goes on from the last checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["--help"], ["run", "--help"], *([verb, "--help"] for verb in STAGES)], ids=str)
def test_help_names_every_setting(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main(argv)
    text = capsys.readouterr().out
    assert "usage: tutelage" in text
    if argv[:1] and argv[0] in STAGES:
        for name in STAGES[argv[0]].config_class().model_fields:
            assert "--" + name.replace("_", "-") in text


def test_no_help_imports_torch() -> None:
    verbs = [[], ["--help"], *([verb, "--help"] for verb in STAGES)]
    code = f"""
import sys, io, contextlib
from tutelage.cli import main
for argv in {verbs}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(argv)
print([m for m in ("torch", "transformers", "matplotlib", "datasets") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    module = subprocess.run([sys.executable, "-m", "tutelage", "--version"], capture_output=True, text=True, check=True)
    assert module.stdout.startswith("tutelage ")


def test_from_scratch_trains_the_base_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, Path, str | None]] = []
    monkeypatch.setattr(
        "tutelage.cli.run_recipe",
        lambda steps, output, _: ran.append((steps[1][0], output, getattr(steps[1][2], "model", None))),
    )
    assert main(["demo", "--from-scratch", "--output", str(tmp_path)]) == 0
    assert ran == [
        ("base", tmp_path / "pretraining", None),
        ("sft", tmp_path, str(tmp_path / "pretraining" / "base" / "model")),
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_spin_for_a_short_while_unless_told_otherwise(given: dict[str, str], expected: str) -> None:
    own = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import tutelage, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], env=own | given, capture_output=True, text=True, check=True)
    assert out.stdout.split() == [expected, "False"]  # before torch reads it


def test_a_wrong_range_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", "--prompts", "p", "--policy", "m", "--output", "o", "--k", "4-9"]) == 2
    assert capsys.readouterr().err.strip() == (
        "tutelage: command line: k='4-9': expected a number or a range, such as 6 or 4..9"
    )


# --- dry runs ---------------------------------------------------------------------------------------------------------


def test_a_recipe_is_checked_as_far_as_its_inputs_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "smoke", "--output", str(tmp_path / "runs"), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out == "dry run: nothing was written\n"
    lines = [line for line in err.splitlines() if line.startswith("[")]
    assert lines[0] == f"[1/{len(lines)}] world: can start"
    assert lines[1] == f"[2/{len(lines)}] sft: waits for world"
    assert lines[-1].startswith(f"[{len(lines)}/{len(lines)}] report: waits for world, sft, ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pretraining_texts: {here}/typo.jsonl", "sft: pretraining_texts: {here}/typo.jsonl: no such file or folder"),
        ("pretraining_texts: {here}/rows.jsonl", "sft: pretraining_texts: {here}/rows.jsonl:1: found columns question"),
        ("model: {here}/typo", "sft: model: {here}/typo: no such file or folder"),
        ("model: '{run}/later/model'", "sft: model: {here}/runs/later/model: no such file or folder"),
        ("model: some/hub-id", None),  # nothing is fetched
        ("pretraining_texts: '{run}/world/typo.jsonl'", None),  # nobody knows yet
    ],
)
def test_what_a_waiting_stage_reads_is_looked_at(
    setting: str, message: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "a"}\n')
    name, _, value = setting.partition(": ")
    settings = {"model": "'{base}'", "demonstrations": "'{run}/world/demonstrations.jsonl'", name: value}
    lines = ["stages:", "  world: {}", "  sft:", *(f"    {key}: {own}" for key, own in settings.items())]
    (tmp_path / "r.yaml").write_text("\n".join(lines).replace("{here}", str(tmp_path)))
    code = main(["run", str(tmp_path / "r.yaml"), "--output", str(tmp_path / "runs"), "--dry-run"])
    last = capsys.readouterr().err.splitlines()[-1]
    if message is None:
        assert (code, last) == (0, "[2/2] sft: waits for world")
    else:
        assert code == 2
        assert last.startswith(f"tutelage: {message.format(here=tmp_path)}")


def test_a_waiting_stage_reads_named_inputs_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text(
        "stages:\n  world: {}\n  reward: {model: '{base}', rankings: '{run}/world/r.jsonl', valid: {mine: typo.jsonl}}"
    )
    assert main(["run", str(tmp_path / "r.yaml"), "--output", str(tmp_path / "runs"), "--dry-run"]) == 2
    assert "reward: valid.mine: typo.jsonl: no such file or folder" in capsys.readouterr().err


def test_what_overwrite_replaces_is_not_called_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text("stages:\n  world: {documents: 20, sft_prompts: 40}\n")
    command = ["run", str(tmp_path / "r.yaml"), "--output", str(tmp_path / "runs")]
    assert main(command) == 0
    capsys.readouterr()
    for words, state in ((["--set", "world.seed=1", "--overwrite"], "can start"), ([], "done already")):
        assert main([*command, *words, "--dry-run"]) == 0
        assert f"[1/1] world: {state}\n" in capsys.readouterr().err
    alone = ["world", "--config", str(tmp_path / "runs" / "world" / "config.yaml"), "--dry-run"]
    assert main(alone) == 0
    assert capsys.readouterr().out == "dry run: nothing was written; it is done already\n"


@pytest.mark.parametrize(
    ("typed", "read"),
    [("0.8,0.95", (0.8, 0.95)), ("[0.8, 0.95]", (0.8, 0.95)), (" 0.8 , 0.95", (0.8, 0.95))],
)
def test_lists_are_typed_with_commas(typed: str, read: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """As help shows their defaults."""
    seen: list[object] = []
    monkeypatch.setattr("tutelage.recipe.Stage.run", lambda self, config: seen.append(config.optimizer.betas) or True)
    assert main(["sft", "--model", "m", "--demonstrations", "d", "--output", "o", "--optimizer.betas", typed]) == 0
    assert seen == [read]


def test_several_sources_are_typed_with_commas(
    monkeypatch: pytest.MonkeyPatch, mistake: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As they are typed: what YAML would take for a number, a date or a mapping is a path like any other."""
    read: list[object] = []
    monkeypatch.setattr("tutelage.recipe.Stage.run", lambda self, config: read.append(config.rankings) or True)
    command = ["reward", "--model", "m", "--output", "o", "--rankings"]
    for typed in ("a.jsonl", "a.jsonl, 2026-11-28,b: c", "['a,b.jsonl', c.jsonl]"):
        assert main([*command, typed]) == 0
    assert read == [("a.jsonl",), ("a.jsonl", "2026-11-28", "b: c"), ("a,b.jsonl", "c.jsonl")]
    capsys.readouterr()
    assert "rankings=['a', 'b', 'a']: names 'a' twice; leave one out" in mistake(*command, "a,b,a")
    assert "at least 1 item" in mistake(*command, "")


def test_help_names_the_type_of_what_need_not_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["online", "--help"])
    out = capsys.readouterr().out
    assert "--kl-target FLOAT" in out
    assert "--pretraining-texts STR" in out
    assert "--optimizer.betas A,B" in out
    assert "UNION" not in out


def test_a_run_that_lost_a_file_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", str(tmp_path / "r.yaml"), "--output", str(tmp_path / "runs")]
    world = "stages:\n  world: {documents: 20, sft_prompts: 40}\n"
    (tmp_path / "r.yaml").write_text(world)
    assert main(command) == 0
    (tmp_path / "r.yaml").write_text(
        world + "  sft: {model: '{base}', demonstrations: '{run}/world/demonstrations.jsonl'}"
    )
    for lines in (
        ["[1/2] world: done already", "[2/2] sft: can start"],
        ["[1/2] world: can start", "[2/2] sft: waits for world"],
    ):
        capsys.readouterr()
        assert main([*command, "--dry-run"]) == 0
        assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")] == lines
        (tmp_path / "runs" / "world" / "demonstrations.jsonl").unlink(missing_ok=True)


def test_the_inputs_of_a_stage_are_settings_of_it() -> None:
    for stage in STAGES.values():
        assert set(stage.config_class().INPUTS) <= set(stage.config_class().model_fields)


def test_a_dry_run_finds_what_is_wrong_with_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d.jsonl").write_text('{"question": "a", "completion": "b"}\n')
    arguments = ["--model", str(BASE), "--demonstrations", str(tmp_path / "d.jsonl"), "--output", str(tmp_path / "o")]
    assert main(["sft", *arguments, "--dry-run"]) == 2
    assert f"{tmp_path / 'd.jsonl'}:1: found columns question, completion" in capsys.readouterr().err
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n')
    assert main(["sft", *arguments, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out == "dry run: nothing was written\n"
    assert "sft: 16 updates of 32: 16 epochs of 1" in err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "--texts", "t.txt", "--valid-texts", "d.jsonl"], "d.jsonl:1: found columns question"),
        (
            ["answer", "--models", f"a={BASE}", "--prompts", "p.jsonl", "--texts", "d.jsonl"],
            "d.jsonl:1: found columns question",
        ),
        (["collect", "--policy", "empty", "--prompts", "p.jsonl"], "empty: "),
        (["judge", "--answers", "p.jsonl"], "baseline='sft' is not among the answers' models ['a']"),
    ],
)
def test_a_dry_run_reads_what_is_used_last(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.txt").write_text("Tom sees a big red ball. " * 50)
    (tmp_path / "d.jsonl").write_text('{"question": "a"}\n')
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "answers": {"a": "x"}}\n')
    assert main([*arguments, "--output", "o", "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith(f"tutelage: {message}")


def test_out_of_memory_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A batch of 10^12 tokens: torch asks for four terabytes for the rows that it draws."""
    (tmp_path / "t.txt").write_text("Tom sees a big red ball. " * 50)
    small = ["--vocab-size", "300", "--hidden-size", "16", "--layers", "1", "--heads", "2", "--sequence-length", "2"]
    arguments = ["--texts", str(tmp_path / "t.txt"), "--output", str(tmp_path / "o"), "--batch-tokens", "1000000000000"]
    assert main(["pretrain", *arguments, *small]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tutelage: ")]
    assert line.startswith("tutelage: out of memory; the same command goes on")


def test_help_of_a_group_that_need_not_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["dpo", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "without any of these settings the whole model is trained. (default: None)" in words
    assert "Rank of the matrices. (default: 16)" in words


def test_a_list_may_be_given_by_repeating_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[typing.Any] = []
    monkeypatch.setattr("tutelage.recipe.Stage.run", lambda self, config: ran.append(config))
    command = ["dpo", "--model", "m", "--output", "o"]
    assert main([*command, "--rankings", "a.jsonl", "--rankings", "b.jsonl,c.jsonl"]) == 0
    assert ran[-1].rankings == ("a.jsonl", "b.jsonl", "c.jsonl")
    assert main([*command, "--rankings", "a.jsonl", "--optimizer.betas", "0.8,0.9"]) == 0
    assert ran[-1].optimizer.betas == (0.8, 0.9)


def test_options_may_have_underscores(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[typing.Any] = []
    monkeypatch.setattr("tutelage.recipe.Stage.run", lambda self, config: ran.append(config))
    command = ["online", "--model", "m", "--reward_model", "r_m", "--prompts=a_b.jsonl", "--output", "o"]
    assert (
        main(
            [
                *command,
                "--algorithm",
                "grpo",
                "--algorithm.num_generations=3",
                "--batch_size",
                "6",
                "--mini-batch_size=6",
            ]
        )
        == 0
    )
    assert ran[-1].algorithm.num_generations == 3
    assert (ran[-1].reward_model, ran[-1].prompts, ran[-1].batch_size) == ("r_m", "a_b.jsonl", 6)


@pytest.mark.parametrize(
    ("verb", "theirs", "ours"),
    [
        ("online", "--beta", "--kl-coef"),
        ("online", "--max_completion_length", "--sampler.max-new-tokens"),
        ("online", "--reward_funcs", "--rewards"),
        ("online", "--lora_r", "--adapter.rank"),
        ("sft", "--use_peft", "--adapter"),
        ("dpo", "--train_dataset", "--rankings"),
        ("dpo", "--per_device_train_batch_size", "--batch-size"),
        ("collect", "--num_generations", "--k"),
    ],
)
def test_names_of_other_tools_are_known(mistake: Callable[..., str], verb: str, theirs: str, ours: str) -> None:
    assert f"did you mean '{ours}'?" in mistake(verb, theirs, "1")


def test_help_says_what_other_classes_have_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["online", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "(default: 4; grpo: 8; reinforce_pp: 1)" in words
    assert "(default: reward; grpo: k3)" in words
