"""Files and settings as nobody meant them: each gives records or one line that names the file, in bounded
time and memory.

`TUTELAGE_FUZZ=20000` reads that many malformed files (and a tenth as many settings, and as many again by a dry run)
instead of a few hundred.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scenarios import NAMES, ONLINE, prepare, scenario, write
from test_broken_files import deep, parquet
from test_datasets import READERS, ROWS
from tutelage.cli import main
from tutelage.data.datasets import write_jsonl
from tutelage.data.judgments import read_judgments
from tutelage.data.sources import DataError
from tutelage.recipe import RECIPES, STAGES, plan
from tutelage.settings.common import make
from tutelage.settings.strict_yaml import read_yaml

FILES = int(os.environ.get("TUTELAGE_FUZZ", "300"))
SECONDS = 10.0  # of one file, on a busy machine
pytestmark = pytest.mark.usefixtures("bounded")

# Files by chance

LAYOUTS: dict[str, dict[str, Any]] = {
    "text": {"text": "some words"},
    "ShareGPT": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "ShareGPT, pair": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"},
    },
    "NeMo-RL": {
        "context": [{"role": "user", "content": "q"}],
        "completions": [{"completion": [{"role": "assistant", "content": c}], "rank": r} for r, c in enumerate("ab")],
    },
    "Dolly": {"instruction": "q", "context": "c", "response": "x"},
    "Label Studio": {
        "id": 1, "data": {"prompt": "q", "items": [{"id": "1", "body": "a"}, {"id": "2", "body": "b"}]},
        "annotations": [{"completed_by": {"email": "p"}, "result": [{"value": {"ranker": {"rank": ["2", "1"]}}}]}],
    },
    "Label Studio, pairwise": {
        "data": {"prompt": "q", "answer1": "a", "answer2": "b"},
        "annotations": [{"completed_by": 3, "result": [{"value": {"selected": "left"}}]}],
    },
    "Label Studio, JSON_MIN": {
        "prompt": "q", "items": [{"id": 1, "body": "a"}, {"id": 2, "body": "b"}], "annotator": 1, "annotation_id": 2,
        "rank": [{"ranker": {"rank": ["2", "1"]}}],
    },
    "Argilla": {
        "id": "1", "fields": {"prompt": "q", "a": "x", "b": "y"},
        "responses": {"better": [{"value": [{"value": "a", "rank": 1}, {"value": "b", "rank": 2}], "user_id": "u"}]},
    },
    "Argilla, flat": {
        "prompt": "q", "a": "x", "b": "y", "better.responses": [["b", "a"]], "better.responses.users": ["u"],
        "better.responses.status": ["submitted"],
    },
    "carried": {
        "prompt": "q", "completion": "x", "id": 3, "user": "u", "split": "train", "use_case": "chat",
        "meta": {"a": [1, {"b": None}]}, "labeler": "l", "system": "s", "history": [["h", "i"]],
    },
    "judgment": {"id": 1, "baseline": "sft", "use_case": None, "models": {
        "sft": {"wins": 0.5, "parts": {"a": 1.0}, "votes": [{"labeler": 1, "share": 1, "arm": "heldout"}], "length": 3},
    }},
    "annotation": {"instruction": "q", "output_1": "a", "output_2": "b", "generator_1": "sft", "generator_2": "ppo",
                   "annotator": "llm", "preference": 1.5},
    "rated ranking": {"prompt": "q", "completions": [{"text": "a", "policy": "x"}, {"text": "b", "policy": "y, z"}],
                      "ranks": [1, 2], "ratings": [{"quality": 7, "flags": []}, {"quality": 1, "flags": ["f"]}],
                      "labeler": "l", "arm": "heldout"},
}  # fmt: skip
GOOD = [row for row, *_ in ROWS.values()] + list(LAYOUTS.values())
JUNK: list[Any] = [
    None, True, 0, -1, 3, 2**63, 10**400, 1.5, 1e308, float("nan"), float("inf"), "", " ", "x", "1", "\0", "\ud800",
    "\x1b[2J",
    "\u202e", "é" * 5000, "[1, 2", "[]", "{}", '{"role": "user"}', [], {}, [[]], [None], {"": {}}, {"role": "user"},
    {"role": 1, "content": "x"}, {"from": [], "value": {}}, {"text": None}, [1, "a", None], json.loads(deep(60)),
    json.loads(deep(300)), ["x"] * 300, {str(i): i for i in range(300)},
]  # fmt: skip
READ = {**READERS, "judgments": lambda path: read_judgments(path, several=True)}
TELLS = [LAYOUTS[name] for name in ("ShareGPT", "Dolly", "carried")]
RANKS = [row for name, row in LAYOUTS.items() if name.startswith(("ShareGPT, pair", "NeMo", "Label", "Argilla"))]
FITTING = {  # what each reads, unless it is broken
    "texts": [LAYOUTS["text"]],
    "demonstrations": [row for row, _, completion, _ in ROWS.values() if completion] + TELLS,
    "rankings": [row for row, _, _, ranked in ROWS.values() if ranked] + RANKS,
    "prompts": [row for row, *_ in ROWS.values()] + TELLS + RANKS,
    "judgments": [LAYOUTS["judgment"], LAYOUTS["annotation"], LAYOUTS["rated ranking"]],
}


def mutated(value: Any, rng: random.Random) -> Any:
    """A value with something in it replaced, removed, doubled, wrapped or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        match rng.randrange(6):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {
                    (rng.choice(["", "prompt", "ranks", "messages", key + "s"]) if k == key else k): v
                    for k, v in value.items()
                }
            case 2:
                other = rng.choice(list(value))
                return value | {key: value[other], other: value[key]}
            case 3:
                return value | rng.choice(GOOD)
        return value | {key: mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        match rng.randrange(4):
            case 0:
                changed = []
            case 1:
                changed = [value[at]] * 2
            case _:
                changed = [mutated(value[at], rng)]
        return value[:at] + changed + value[at + 1 :]
    return rng.choice([*JUNK, [value], {"a": value}, str(value)])


def written(rows: list[Any], kind: str) -> bytes:
    """The rows in a kind of file."""
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "json":
        return json.dumps(rows).encode()
    if kind == "txt":
        return "\n".join(str(row) for row in rows).encode("utf-8", "surrogatepass")
    dicts = [row if isinstance(row, dict) else {"prompt": row} for row in rows]
    if kind == "csv":
        file = io.StringIO(newline="")
        writer = csv.writer(file)
        writer.writerow(dicts[0])
        for row in dicts:
            writer.writerow([cell if isinstance(cell, str) else json.dumps(cell) for cell in row.values()])
        return file.getvalue().encode("utf-8", "surrogatepass")
    try:
        return parquet(pa.Table.from_pylist(dicts))
    except (pa.ArrowException, TypeError, ValueError, OverflowError):  # what no column can hold
        plain = [{str(k).encode(errors="replace").decode(): json.dumps(v) for k, v in row.items()} for row in dicts]
        return parquet(pa.Table.from_pylist(plain))


def bitten(content: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut out, put in, doubled or cut off."""
    content_ = bytearray(content)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(content_) + 1)
        match rng.randrange(5):
            case 0 if at < len(content_):
                content_[at] ^= 1 << rng.randrange(8)
            case 1:
                del content_[at : at + rng.randrange(20)]
            case 2:
                content_[at:at] = rng.choice(
                    [b"\0", b"\xff", b'"', b"\n", b"{", b"]", b"\xef\xbb\xbf", rng.randbytes(8)]
                )
            case 3:
                content_[at:at] = content_[at : at + 50]
            case 4 if rng.random() < 0.3:
                del content_[at:]
    return bytes(content_)


TALLY: dict[str, int] = {}


@settings(max_examples=FILES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["jsonl", "json", "csv", "parquet", "txt"]), st.booleans(), st.sampled_from(sorted(READ)),
    st.integers(0, 2**64),
)  # fmt: skip
def test_malformed_files(
    tmp_path_factory: pytest.TempPathFactory, kind: str, zipped: bool, wanted: str, seed: int
) -> None:
    rng = random.Random(seed)
    rows: list[Any] = [rng.choice(FITTING[wanted]) for _ in range(rng.randrange(3))]
    bad = rng.choice(FITTING[wanted] if rng.random() < 0.8 else GOOD)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        bad = mutated(bad, rng)
    rows.insert(rng.randrange(len(rows) + 1), bad)
    content = written(rows, kind)
    content = bitten(content, rng) if rng.random() < 0.3 else content
    if zipped:
        content = gzip.compress(content)
        content = bitten(content, rng) if rng.random() < 0.3 else content
    folder = tmp_path_factory.getbasetemp()
    path = folder / f"malformed.{kind}{'.gz' if zipped else ''}"
    path.write_bytes(content)
    began = time.perf_counter()
    try:
        records: Any = READ[wanted](str(path))
    except DataError as error:
        told = str(error)
        assert told.startswith(str(path))
        assert "\n" not in told.replace(str(path), "")
        assert len(told) < 1500
        TALLY["refused"] = TALLY.get("refused", 0) + 1
    else:
        if wanted != "judgments":
            write_jsonl(folder / "again.jsonl", records.records)
            if wanted != "rankings" and records.records:
                assert READ[wanted](folder / "again.jsonl").records == records.records
        TALLY["read"] = TALLY.get("read", 0) + 1
    assert time.perf_counter() - began < SECONDS


# Settings by chance

VALUES = ["", "~", "yes", "0", "-1", "1e18", "1e-400", ".inf", "-.inf", ".nan", "'", '"', "[", "]", "{", "}", "{{run}}",
          "[a, b]", "{a: b}", "{1: 2}", "!!timestamp x", "!!bool maybe", "!!python/object:os.system x", "2024-13-45",
          "&a [*a]", "*a", "*b", "<<: *a", "- - -", "? x", "|", ">", "%", "@", "`", "0x", "1_0", "1:99", "9" * 5000,
          "999999999999999999999", "\t", "é", "\u202e", "'\\ud800'", '"\\ud800"', '"\\0"', "/dev/zero", "../..",
          "{base}{base}", "stages: {}", "seed: 1", "x" * 5000, "[" * 60 + "]" * 60, "[" * 3000]  # fmt: skip


def scrambled(text: str, rng: random.Random) -> str:
    """A YAML text with a value, a line, a name or a few characters changed."""
    lines = text.split("\n")
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(lines))
        name, colon, _ = lines[at].partition(": ")
        match rng.randrange(7):
            case 0 | 1 | 2:
                lines[at] = f"{name}: {rng.choice(VALUES)}" if colon else f"{lines[at]} {rng.choice(VALUES)}"
            case 3:
                lines.insert(at, lines[rng.randrange(len(lines))])
            case 4:
                del lines[at]
                lines = lines or [""]
            case 5:
                cut = rng.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][:cut] + rng.choice(VALUES) + lines[at][cut:]
            case 6:
                lines[at] = rng.choice(["1", "[a]", "on", "x", name + "s", "<<"]) + ": " + rng.choice(VALUES)
    return "\n".join(lines)


def swapped(text: str, rng: random.Random, values: list[str]) -> str:
    """A YAML text with one or two values replaced by sound ones, which may not fit there."""
    lines = text.split("\n")
    for at in rng.sample(range(len(lines)), rng.randrange(1, 3)):
        name, colon, _ = lines[at].partition(": ")
        lines[at] = f"{name}: {rng.choice(values)}" if colon else lines[at]
    return "\n".join(lines)


def recipes() -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(RECIPES.glob("*.yaml"))}


def wanted_of(path: Path) -> dict[str, str]:
    inputs = read_yaml(path).get("inputs") or {}
    return {name: "mine" for name, default in inputs.items() if default is None} if isinstance(inputs, dict) else {}


@settings(max_examples=max(50, FILES // 20), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(recipes())), st.integers(0, 2**64))
def test_malformed_recipes(tmp_path_factory: pytest.TempPathFactory, recipe: str, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path_factory.getbasetemp() / "recipe.yaml"
    path.write_text(scrambled(recipes()[recipe], rng), encoding="utf-8")
    judge(path, lambda: plan(path, Path("/runs"), 0, given=wanted_of(path)))


def every_setting() -> dict[str, str]:
    """Each stage's settings as a file, those with a default too."""
    files = {}
    for recipe in sorted(RECIPES.glob("*.yaml")):
        for _, stage, config in plan(recipe, Path("/runs"), 0, given=wanted_of(recipe)):
            verb = next(name for name, other in STAGES.items() if other is stage)
            files[verb] = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    rest = {
        "measure": "reward_model: m\nrankings: r\noutput: o\n",
        "merge": "model: m\noutput: o\n",
        "benchmark": "models: {a: m}\ntasks: {lambada: f}\noutput: o\n",
        "score": "samples: s\ntask: f1\noutput: o\n",
        "lm-eval": "models: {a: m}\ntasks: [t]\noutput: o\n",
        "toxicity-classifier": "model: m\ntexts: t\noutput: o\n",
        "prioritize": "candidates: c\nreward_models: [a, b]\noutput: o\n",
        "claims": "seeds: [0, 1]\nclaims: [tax]\nfast: true\noutput: o\n",
    }
    return {verb: files.get(verb) or rest[verb] for verb in STAGES}


EVERY = every_setting()


@settings(max_examples=max(50, FILES // 20), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(EVERY)), st.integers(0, 2**64))
def test_malformed_settings(tmp_path_factory: pytest.TempPathFactory, verb: str, seed: int) -> None:
    path = tmp_path_factory.getbasetemp() / "settings.yaml"
    path.write_text(scrambled(EVERY[verb], random.Random(seed)), encoding="utf-8")
    judge(path, lambda: make(STAGES[verb].config_class(), read_yaml(path), str(path)))


def judge(path: Path, parse: Callable[[], object]) -> None:
    began, told = time.perf_counter(), []
    try:
        parse()
    except ValueError as error:
        told = str(error).splitlines()
    assert all(line.startswith(str(path)) and len(line) < 2000 for line in told), told
    outcome = "settings refused" if told else "settings taken"
    TALLY[outcome] = TALLY.get(outcome, 0) + 1
    assert time.perf_counter() - began < SECONDS


# Dry runs of such settings

OTHERS = (
    "measure",
    "merge",
    "agreement",
    "evaluate",
    "report",
    "benchmark",
    "score",
    "toxicity-classifier",
    "overoptimize",
    "claims",
)  # not sweep, which starts processes

RECIPE = """\
stages:
  world: {documents: 200, users: 20}
  sft: {model: DATA/policy, demonstrations: DATA/demos.jsonl, pretraining_texts: DATA/texts.jsonl}
  collect: {policy: "{run}/sft/model", prompts: DATA/prompts.jsonl, k: 2..3}
  reward: {model: "{run}/sft/model", rankings: DATA/rankings.jsonl, valid: {a: DATA/rankings.jsonl}}
  ppo: {stage: online, model: "{run}/sft/model", reward_model: "{run}/reward/model", prompts: DATA/prompts.jsonl}
"""


@pytest.fixture(scope="module")
def runnable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[str, str]]]:
    """A folder of small real inputs, and verbs with sound settings for them, by name."""
    data = tmp_path_factory.mktemp("runnable")
    prepare(data)
    run, config = scenario("judge", data, data / "judge")
    run(config)
    rows = [json.loads(line) for line in (data / "rankings.jsonl").read_text().splitlines()]
    write(data / "both.jsonl", [row | {"labeler": labeler} for row in rows for labeler in "ab"])
    (data / "here" / "below").mkdir(parents=True)
    files = {"run": ("run", RECIPE.replace("DATA", str(data)))}
    labelled = [{"text": f"a {i} dog", "label": i % 2} for i in range(20)]
    verbs = dict.fromkeys(ONLINE, "online")
    for name in NAMES:
        _, config = scenario(name, data, data / "out")
        files[name] = verbs.get(name, name), yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    for verb, settings_ in {
        "measure": {"reward_model": "reward_model", "rankings": "rankings.jsonl"},
        "merge": {"model": "adapter"},
        "agreement": {"rankings": "both.jsonl", "reward_model": "reward_model"},
        "evaluate": {"judgments": "judge/judgments.jsonl"},
        "report": {"runs": "."},
        "benchmark": {"models": {"a": "policy", "b": "other"}, "tasks": {"lambada": "texts.jsonl"}},
        "score": {"samples": write(data / "samples.jsonl", [{"sample": "a", "reference": "b"}])},
        "toxicity-classifier": {"model": "policy", "texts": write(data / "labelled.jsonl", labelled)},
        "lm-eval": {"models": {"a": "policy"}},
    }.items():
        values = {**settings_, "output": "out"}
        paths = {
            key: {n: str(data / v) for n, v in value.items()} if isinstance(value, dict) else str(data / value)
            for key, value in values.items()
        }
        chosen = {"score": {"task": "f1"}, "lm-eval": {"tasks": ["none"]}}.get(verb, {})
        config = make(STAGES[verb].config_class(), paths | chosen, verb)
        files[verb] = verb, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write(data / "many.jsonl", [{"prompt": f"Name a colour, {i}.", "id": str(i)} for i in range(32)])
    lab = {
        "policy": str(data / "policy"),
        "prompts": str(data / "many.jsonl"),
        "proxies": {"a": str(data / "reward_model")},
    }
    for verb, settings_ in {
        "overoptimize": lab | {"samples": 2, "sampler": {"max_new_tokens": 8}},
        "sweep": {"command": "world", "over": {"documents": [5]}},
        "claims": {"fast": True, "claims": ["tax"]},
    }.items():
        config = make(STAGES[verb].config_class(), settings_ | {"output": str(data / "out")}, verb)
        files[verb] = verb, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    assert {verb for verb, _ in files.values()} == {*STAGES, "run"}
    return data, files


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.lstat().st_mtime_ns, p.lstat().st_size) for p in folder.rglob("*")}


def dry_run(verb: str, path: Path) -> tuple[int, list[str]]:
    """The exit code of the command, and the lines that say what is wrong."""
    told = io.StringIO()
    argv = [verb, str(path), "--output", "out"] if verb == "run" else [verb, "--config", str(path)]
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = main([*argv, "--dry-run"])
    _, _, error = told.getvalue().partition("tutelage: ")
    return code, error.splitlines()


def test_sound_settings_pass_their_dry_run(
    runnable: tuple[Path, dict[str, tuple[str, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, files = runnable
    monkeypatch.chdir(data / "here" / "below")
    before = snapshot(data)
    for verb, text in files.values():
        (tmp_path / "sound.yaml").write_text(text)
        assert dry_run(verb, tmp_path / "sound.yaml") == (0, [])
        TALLY["dry runs passed"] = TALLY.get("dry runs passed", 0) + 1
    assert snapshot(data) == before


@settings(max_examples=FILES // 10, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted({"run", *NAMES, *OTHERS})),
       seed=st.integers(0, 2**64))  # fmt: skip
def test_dry_runs_of_malformed_settings(
    runnable: tuple[Path, dict[str, tuple[str, str]]], tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch, name: str, seed: int,
) -> None:  # fmt: skip
    data, files = runnable
    monkeypatch.chdir(data / "here" / "below")  # where "../.." is still ours
    verb, text = files[name]
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    rng, plain = random.Random(seed), ["0", "1", "2", "7", "0.5", "null", "true", "a", "{}", "[a]"]
    values = [*plain, *map(str, sorted(data.iterdir())), str(data / "gone.jsonl"), f"{{a: {data / 'policy'}}}"]
    changed = swapped(text, rng, values) if rng.random() < 0.7 else scrambled(text, rng)
    path.write_text(changed, encoding="utf-8")
    before, began = snapshot(data), time.perf_counter()
    code, told = dry_run(verb, path)
    assert time.perf_counter() - began < SECONDS
    assert snapshot(data) == before
    assert (code, bool(told)) in ((0, False), (2, True))
    names = {str(path), str(data), *(key for stage in STAGES.values() for key in stage.config_class().model_fields)}
    assert all(any(known in line for known in names) and len(line) < 2000 for line in told), told
    outcome = "dry runs refused" if told else "dry runs passed"
    TALLY[outcome] = TALLY.get(outcome, 0) + 1


def test_some_mutations_break_and_some_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    """Of each kind that the tests above have drawn; so this file is run whole, and in one process."""
    if "TUTELAGE_FUZZ" in os.environ:
        with capsys.disabled():
            print(TALLY, file=sys.stderr)  # as pytest-xdist swallows what its workers print
    assert set(TALLY) == {
        "read", "refused", "settings taken", "settings refused", "dry runs passed", "dry runs refused"
    }  # fmt: skip
