"""The over-optimisation lab: the best of n and policies against what is worked out by hand, sweeps, and bad input."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from conftest import tiny_model
from tutelage.cli import main
from tutelage.data.datasets import read_prompts, write_jsonl
from tutelage.lab import overoptimization, sweep
from tutelage.lab.curves import Bootstrap, best_run, frontier, policies_curve
from tutelage.lab.policies import Point, policies_of
from tutelage.models.loading import load_policy, save_model
from tutelage.models.tokens import load_tokenizer
from tutelage.runs import done, open_run
from tutelage.sampling.completions import Writer, complete, log_ratios
from tutelage.settings.common import make
from tutelage.settings.online import OnlineConfig
from tutelage.settings.overoptimization import OveroptimizeConfig
from tutelage.settings.sampler import LocalSampling
from tutelage.settings.sweep import SweepConfig
from tutelage.stages import online

JUDGES = """
def length(prompts, completions):
    return [len(c) for c in completions]

def vowels(prompts, completions):
    return [sum(c.count(v) for v in "aeiou") for c in completions]

def middling(prompts, completions):
    return [-abs(len(c) - 14) for c in completions]

def picky(prompts, completions):
    return [None if len(c) % 5 == 0 else len(c) for c in completions]

def nothing(prompts, completions):
    return [None for _ in completions]

def one(prompts, completions):
    return [1 for _ in completions]
"""
PROMPTS, SAMPLING = 32, LocalSampling(max_new_tokens=8)


@pytest.fixture
def data(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A policy, another one, prompts, and a module of judges in the working folder."""
    save_model(tiny_model("llama", len(tokenizer)), tokenizer, tmp_path / "policy")
    rows = [{"id": str(i), "prompt": f"Name a colour of the sky, {i}."} for i in range(PROMPTS)]
    write_jsonl(tmp_path / "prompts.jsonl", rows)
    (tmp_path / "lab_judges.py").write_text(JUDGES)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("lab_judges", None)


def config(data: Path, **values: Any) -> OveroptimizeConfig:
    settings = {
        "policy": str(data / "policy"), "prompts": str(data / "prompts.jsonl"), "output": data / "out",
        "proxies": {"length": "lab_judges:length"}, "gold": "lab_judges:middling", "samples": 5, "policy_samples": 2,
        "sampler": {"max_new_tokens": 8}, "draws": 200,
    }  # fmt: skip
    return make(OveroptimizeConfig, settings | values, "test")


def samples_of(folder: Path, data: Path, number: int) -> list[list[str]]:
    """The texts that a policy writes, by prompt."""
    tokenizer = load_tokenizer(folder)
    asked = [p for p in read_prompts(str(data / "prompts.jsonl")).records for _ in range(number)]
    answers = complete(Writer("x", load_policy(folder, tokenizer), tokenizer), asked, 0, SAMPLING)
    texts = [a.completion.text for a in answers]
    return [texts[i : i + number] for i in range(0, len(texts), number)]


def middling(text: str) -> float:
    return -abs(len(text) - 14)


def test_the_best_of_n_as_all_subsets_have_it(data: Path) -> None:
    overoptimization.run(config(data))
    results = done(data / "out")
    assert results is not None
    texts = samples_of(data / "policy", data, 5)
    unit = pstdev([middling(t) for own in texts for t in own])
    curve = results["best_of_n"]["length"]
    assert [p["n"] for p in curve["points"]] == [1, 2, 4, 5]
    for point in curve["points"]:
        gold, proxy = [], []
        for own in texts:
            chosen = []
            for subset in combinations(own, point["n"]):
                best = max(map(len, subset))
                chosen.append((fmean(middling(t) for t in subset if len(t) == best), best))
            gold.append((fmean(g for g, _ in chosen) - fmean(map(middling, own))) / unit)
            proxy.append(fmean(p for _, p in chosen) - fmean(map(len, own)))
        assert point["gold"]["mean"] == pytest.approx(fmean(gold))
        assert point["proxy"]["mean"] == pytest.approx(fmean(proxy))
        assert point["gold"]["low"] <= point["gold"]["mean"] <= point["gold"]["high"]
        assert point["kl"] <= point["kl_bound"] + 1e-9
        assert point["gold"]["prompts"] == PROMPTS
    for end in ("mean", "low", "high"):  # one sample gains nothing on its own prompt
        assert curve["points"][0]["gold"][end] == pytest.approx(0)
    assert results["initial"]["gold"]["mean"] == pytest.approx(fmean(middling(t) for own in texts for t in own))
    assert results["initial"]["gold"]["std"] == pytest.approx(unit)
    assert curve["fit"]["points"] == 3
    assert curve["fit"]["held_out"] is None
    with (data / "out" / "curves.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["point"] for row in rows] == ["1", "2", "4", "5"]
    assert float(rows[1]["gold_gain"]) == pytest.approx(curve["points"][1]["gold"]["mean"])


def test_an_ensemble_beside_its_members(data: Path) -> None:
    two = {"length": "lab_judges:length", "vowels": "lab_judges:vowels"}
    overoptimization.run(config(data, proxies=two, combination={"name": "mean_less_std", "pessimism": 2.0}))
    results = done(data / "out")
    assert results is not None
    assert list(results["best_of_n"]) == ["ensemble", "length", "vowels"]  # JSON is sorted
    texts = samples_of(data / "policy", data, 5)
    both = np.array([[(len(t), sum(t.count(v) for v in "aeiou")) for t in own] for own in texts], dtype=float)
    pessimistic = both.mean(2) - 2 * both.std(2, ddof=1)
    gain = (pessimistic.max(1) - pessimistic.mean(1)).mean()
    assert results["best_of_n"]["ensemble"]["points"][-1]["proxy"]["mean"] == pytest.approx(gain, rel=1e-5)


def test_policies_along_a_run(data: Path) -> None:
    """KL, proxy and gold of each kept policy, as their own samples have it."""
    rl = OnlineConfig(
        output=data / "rl", model=str(data / "policy"), rewards={"length": "lab_judges:length"},
        prompts=str(data / "prompts.jsonl"), total_episodes=24, batch_size=8, mini_batch_size=8, policy_every=2,
        optimizer={"learning_rate": 3e-3}, algorithm={"name": "rloo", "num_generations": 4},
        sampler={"max_new_tokens": 8}, kl_coef=0.0,
    )  # fmt: skip
    online.run(rl)
    assert sorted(p.name for p in (data / "rl").glob("policy-*")) == ["policy-00002"]
    overoptimization.run(config(data, curves={"rl": str(data / "rl")}))
    results = done(data / "out")
    assert results is not None
    curve = results["curves"]["rl"]
    assert (curve["stage"], [p["point"] for p in curve["points"]]) == ("online", ["2", "3"])
    assert curve["fit"] is None  # two points
    assert any("curves" in w or "rl: no fit: 2 points" in w for w in results["warnings"])
    tokenizer = load_tokenizer(data / "policy")
    reference = load_policy(data / "policy", tokenizer)
    initial = samples_of(data / "policy", data, 5)
    unit = results["initial"]["gold"]["std"]
    for point, folder in zip(curve["points"], (data / "rl" / "policy-00002", data / "rl" / "last"), strict=True):
        policy = load_policy(folder, tokenizer)
        asked = [p for p in read_prompts(str(data / "prompts.jsonl")).records for _ in range(2)]
        answers = complete(Writer("x", policy, tokenizer), asked, 0, SAMPLING)
        kl = float(log_ratios(reference, policy, answers).mean())
        assert point["kl"]["mean"] == pytest.approx(kl, abs=1e-4)
        assert point["d"] == (pytest.approx(kl**0.5, abs=1e-3) if kl > 0 else None)
        gold = fmean(middling(a.completion.text) for a in answers) - fmean(middling(t) for own in initial for t in own)
        assert point["gold"]["mean"] == pytest.approx(gold / unit)
        longer = fmean(len(a.completion.text) for a in answers) - fmean(len(t) for own in initial for t in own)
        assert point["proxies"]["length"]["mean"] == pytest.approx(longer)
    assert results["frontier"]


def test_policies_that_an_interrupted_run_kept_are_those_of_a_whole_one(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "model": str(data / "policy"), "rewards": {"length": "lab_judges:length"}, "total_episodes": 32,
        "prompts": str(data / "prompts.jsonl"), "batch_size": 8, "mini_batch_size": 8, "policy_every": 1,
        "optimizer": {"learning_rate": 3e-3}, "algorithm": {"name": "rloo"}, "sampler": {"max_new_tokens": 8},
        "checkpoint_seconds": 1e-9,
    }  # fmt: skip
    online.run(OnlineConfig(output=data / "whole", **settings))
    real = online.keep_policy

    def killed(opened: Any, iteration: int, *rest: Any) -> None:
        real(opened, iteration, *rest)
        if iteration == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(online, "keep_policy", killed)
    with pytest.raises(KeyboardInterrupt):
        online.run(OnlineConfig(output=data / "parts", **settings))
    monkeypatch.setattr(online, "keep_policy", real)
    online.run(OnlineConfig(output=data / "parts", **settings))
    for n in range(1, 5):
        weights = f"policy-{n:05}/model.safetensors"
        assert (data / "parts" / weights).read_bytes() == (data / "whole" / weights).read_bytes()
    assert (data / "parts" / "policy-00004/model.safetensors").read_bytes() == (
        data / "parts" / "last" / "model.safetensors"
    ).read_bytes()
    assert [p.label for p in policies_of(data / "whole")[1]] == ["1", "2", "3", "4"]  # the last is kept once


def made_sweep(data: Path, policies: dict[str, tuple[dict[str, Any], PreTrainedModel]]) -> str:
    """A finished sweep with these policies by name."""
    over = {name: [values[name] for values, _ in policies.values()] for name in next(iter(policies.values()))[0]}
    sound = {name: list(dict.fromkeys(values)) for name, values in over.items()}
    opened = open_run("sweep", SweepConfig(output=data / "beta", command="online", over=sound), {})
    assert opened is not None
    points = {}
    for name, (values, model) in policies.items():
        (data / "beta" / "points" / name).mkdir(parents=True)
        save_model(model, load_tokenizer(data / "policy"), data / "beta" / "points" / name / "model")
        points[name] = {"settings": values, "folder": f"points/{name}"}
    opened.finish(command="online", over=list(over), points=points)
    return str(data / "beta")


def test_a_sweep_names_its_best_run(data: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    same, other = (tiny_model("llama", len(tokenizer), seed=seed) for seed in (0, 7))
    folder = made_sweep(data, {"a": ({"kl_coef": 0.0}, other), "b": ({"kl_coef": 0.5}, same)})
    overoptimization.run(config(data, curves={"beta": folder}, gold="lab_judges:length"))
    results = done(data / "out")
    assert results is not None
    a, b = results["curves"]["beta"]["points"]
    assert (b["kl"]["mean"], b["d"]) == (0, None)  # the initial policy: d is not defined
    assert a["kl"]["mean"] > 1
    assert results["curves"]["beta"]["fit"] is None
    best = results["best"]["beta"]
    longer = a["gold"]["mean"] > b["gold"]["mean"]
    assert (best["setting"], best["value"], best["best"]) == (
        "kl_coef", 0.0 if longer else 0.5, "kl_coef=0.0" if longer else "kl_coef=0.5",
    )  # fmt: skip
    assert best["at_edge"]
    assert sum(best["shares"].values()) == pytest.approx(1)


def bootstrap(warnings: list[str]) -> Bootstrap:
    return Bootstrap(500, 0, warnings.append)


def test_runs_that_differ_in_their_seed_alone_are_taken_together() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, (4, 40))
    points = [
        Point(str(i), Path(), {"kl_coef": b, "seed": s}) for i, (b, s) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1)))
    ]
    gold = np.array([0.0, 1.0, 0.6, 0.7])[:, None] + noise  # means .5 and .65, though the best single run is the second
    best = best_run(points, gold, bootstrap([]), "beta")
    assert best is not None
    assert (best["value"], best["shares"], best["low"], best["high"]) == (1, {"kl_coef=0": 0, "kl_coef=1": 1}, 1, 1)
    assert best["gold"]["mean"] == pytest.approx(0.65, abs=0.01)
    assert not best["spans_grid"]


def test_a_best_that_cannot_be_told_is_said() -> None:
    warnings: list[str] = []
    points = [Point(str(i), Path(), {"kl_coef": i}) for i in range(3)]
    best = best_run(points, np.random.default_rng(0).normal(size=(3, 40)), bootstrap(warnings), "beta")
    assert best is not None
    assert best["spans_grid"]
    assert "beta: which kl_coef is best cannot be told" in warnings[0]
    assert best_run(points[:1], np.zeros((1, 40)), bootstrap([]), "beta") is None
    words = best_run([Point("", Path(), {"m": "x"}), Point("", Path(), {"m": "y"})], np.eye(2, 40), bootstrap([]), "m")
    assert words is not None
    assert "low" not in words


def test_negative_kl_has_no_d_and_is_in_no_fit() -> None:
    kl = np.array([-0.1, 1, 2, 3, 4])[:, None] * np.ones(40)
    points = [Point(str(i), Path()) for i in range(5)]
    curve = policies_curve(points, kl, {}, np.sqrt(np.maximum(kl, 0)), bootstrap([]))
    assert [p["d"] for p in curve["points"]] == [None, 1, pytest.approx(2**0.5), pytest.approx(3**0.5), 2]
    assert curve["points"][0]["kl"]["mean"] == pytest.approx(-0.1)
    assert (curve["fit"]["points"], curve["fit"]["left_out"]) == (4, 1)


def test_the_frontier_by_hand() -> None:
    def points(*pairs: tuple[float, float]) -> dict[str, Any]:
        return {"points": [{"point": f"{k}", "kl": {"mean": k}, "gold": {"mean": g}} for k, g in pairs]}

    front = frontier({"a": points((1, 0.5), (3, 0.4), (4, 2)), "b": points((2, 1), (2, 0.9), (5, 2))})
    assert [(p["curve"], p["kl"], p["gold"]) for p in front] == [("a", 1, 0.5), ("b", 2, 1), ("a", 4, 2)]


def test_people_s_judgments_are_gold(data: Path) -> None:
    """Votes for `best_of_N` and `CURVE-POINT`, by the prompts' ids or texts; nobody's votes are no score."""
    rng = np.random.default_rng(0)
    wins = rng.integers(0, 2, (PROMPTS, 2)) / 1.0
    rows = [
        {"id": str(i), "use_case": None, "baseline": "sft", "models": {"sft": {"wins": 0.5}, "best_of_4": {"wins": a},
                                                                        "beta-a": {"wins": {"labelers": b, "x": 0}}}}
        for i, (a, b) in enumerate(wins.tolist())
    ]  # fmt: skip
    write_jsonl(data / "judgments.jsonl", rows)
    folder = made_sweep(
        data, {"a": ({"kl_coef": 0.0}, tiny_model("llama", len(load_tokenizer(data / "policy")), seed=7))}
    )
    overoptimization.run(config(data, gold=str(data / "judgments.jsonl"), curves={"beta": folder}))
    results = done(data / "out")
    assert results is not None
    assert results["gold_unit"] == "share of votes won from the baseline, less one half"
    by_n = {p["n"]: p["gold"] for p in results["best_of_n"]["length"]["points"]}
    assert by_n[2] is None
    assert by_n[4]["mean"] == pytest.approx(wins[:, 0].mean() - 0.5)
    assert results["curves"]["beta"]["points"][0]["gold"]["mean"] == pytest.approx(wins[:, 1].mean() - 0.5)
    write_jsonl(data / "judgments.jsonl", rows[:10])
    with pytest.raises(ValueError, match=r"judges 10 of the 32 prompts, and intervals need 30"):
        overoptimization.run(config(data, gold=str(data / "judgments.jsonl"), output=data / "out2"))


def test_a_score_that_is_missing_is_no_zero(data: Path) -> None:
    """Samples without a score are left out, N is what the others leave; a prompt with too few is left out, counted."""
    overoptimization.run(config(data, samples=24, proxies={"picky": "lab_judges:picky"}, gold="lab_judges:length"))
    results = done(data / "out")
    assert results is not None
    texts = samples_of(data / "policy", data, 24)
    known = [[len(t) for t in own if len(t) % 5] for own in texts]
    kept = [own for own in known if len(own) >= 12]
    assert len(kept) >= 30
    assert results["prompts"] == len(kept)
    least = min(map(len, kept))
    assert results["samples"] == least < 24
    assert results["initial"]["gold"]["mean"] == pytest.approx(fmean(fmean(own[:least]) for own in kept))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"limit": 29}, r"limit=29 takes 29; intervals need 30"),
        ({"sampler": {"max_new_tokens": 10_000}}, r"0 of 32 different prompts leave room for 10000 new tokens"),
        ({"gold": "world"}, r"gold=world cannot judge .*prompts.jsonl: prompt 0: not an instruction of the world"),
        ({"gold": "lab_judges:one"}, r"gold scores all 160 samples alike, so it cannot tell a better one"),
        ({"gold": "lab_judges:nothing"}, r"0 of 32 prompts have half of their samples scored by every judge"),
        ({"curves": {"a": "policy"}}, r"policy: is no finished run; name the run folder of `online` or `sweep`"),
    ],
)
def test_what_cannot_be_measured(data: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overoptimization.run(config(data, **values))


def test_a_proxy_that_tells_nothing_apart_is_said(data: Path) -> None:
    overoptimization.run(config(data, proxies={"one": "lab_judges:one"}))
    results = done(data / "out")
    assert results is not None
    assert "one scores all samples of 32 of 32 prompts alike: the best of n is any of them" in results["warnings"]
    for point in results["best_of_n"]["one"]["points"]:
        assert point["gold"]["mean"] == pytest.approx(0, abs=1e-9)
        assert point["kl"] == pytest.approx(0)


def test_what_is_done_is_kept(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted run goes on with the prompt that it was at, and ends with the same results."""
    overoptimization.run(config(data))
    real, calls = overoptimization.complete, []

    def interrupted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(overoptimization, "complete", interrupted)
    with pytest.raises(KeyboardInterrupt):
        overoptimization.run(config(data, output=data / "parts"))
    overoptimization.run(config(data, output=data / "parts"))
    assert len(calls) == 20 + 13
    first, second = (json.loads((data / name / "done.json").read_text()) for name in ("out", "parts"))
    for results in (first, second):
        del results["seconds"], results["peak_memory_gib"]
    assert first == second


def test_a_sweep_makes_its_runs_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"documents": 3, "valid_documents": 2, "sft_prompts": 2, "valid_prompts": 2, "reward_prompts": 2,
             "reward_valid_prompts": 2, "ppo_prompts": 2, "test_prompts": 2}  # fmt: skip
    wanted = SweepConfig(
        output=tmp_path / "s", command="world", settings=small, over={"documents": [3, 4], "users": {"few": 9}}, jobs=2
    )
    assert list(wanted.points) == ["documents-3_users-few", "documents-4_users-few"]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
    assert main(["sweep", "--config", str(tmp_path / "s.yaml")]) == 0
    results = done(tmp_path / "s")
    assert results is not None
    assert results["points"]["documents-4_users-few"] == {
        "settings": {"documents": 4, "users": 9}, "folder": "points/documents-4_users-few",
    }  # fmt: skip
    for n in (3, 4):
        texts = (tmp_path / "s" / "points" / f"documents-{n}_users-few" / "corpus.jsonl").read_text()
        assert len(texts.splitlines()) == n
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s" / "points").rglob("*")}
    (tmp_path / "s" / "done.json").unlink()
    sweep.run(wanted)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s" / "points").rglob("*")} == before  # each is skipped


def test_a_run_that_fails_ends_a_sweep(tmp_path: Path) -> None:
    wanted = SweepConfig(output=tmp_path / "s", command="world", over={"documents": [-1]})
    fault = r"documents--1: `tutelage world` ended with 2: .*documents=-1: .*greater than 0"
    with pytest.raises(ValueError, match=rf"{fault}.*; .*logs/documents--1.log has all of it"):
        sweep.run(wanted)
    dry = wanted.model_copy(update={"dry_run": True, "output": tmp_path / "dry"})
    with pytest.raises(ValueError, match=fault):
        sweep.run(dry)
    assert not (tmp_path / "dry").exists()
    with pytest.raises(ValueError, match="command='--help' is no command of a stage"):
        sweep.run(SweepConfig(output=tmp_path / "v", command="--help", over={"model": {"none": "no/such"}}))


def test_a_recipe_waits_for_the_run_that_a_curve_is_of(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The curve names the whole run folder, which is not there before its run."""
    stages = {
        "beta": {"stage": "sweep", "command": "world", "over": {"documents": [3]}},
        "lab": {
            "stage": "overoptimize", "policy": str(data / "policy"), "prompts": str(data / "prompts.jsonl"),
            "proxies": {"length": "lab_judges:length"}, "curves": {"beta": "{run}/beta"},
        },
    }  # fmt: skip
    (data / "r.yaml").write_text(yaml.safe_dump({"stages": stages}))
    assert main(["run", str(data / "r.yaml"), "--output", str(data / "runs"), "--dry-run"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert lines == ["[1/2] beta: can start", "[2/2] lab: waits for beta"]


def test_the_contents_of_what_a_sweep_reads_belong_to_it(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("x")
    wanted = SweepConfig(
        output=tmp_path,
        command="online",
        settings={"prompts": str(file)},
        over={"model": {"a": str(tmp_path / "gone")}},
    )
    assert sweep.inputs(wanted) == {"settings.prompts": file}


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({}, "over"),
        ({"kl_coef": []}, "over.kl_coef"),
        ({"kl_coef": [0.1, 0.1]}, r"over.kl_coef=.*names '0.1' twice; leave one out"),
        ({"model": ["a/b"]}, r"over.model=.*'a/b' cannot name a folder; give the value a name"),
        ({"kl_coef": [float("nan")]}, r"over.kl_coef=.*expected finite numbers"),
    ],
)
def test_values_that_cannot_be_swept(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(SweepConfig, {"output": "o", "command": "online", "over": over}, "test")


def test_every_proxy_and_curve_has_a_name_of_its_own(data: Path) -> None:
    for values, message in (
        ({"proxies": {"gold": "lab_judges:length"}}, "proxies: gold is another column's name"),
        ({"proxies": {}}, "proxies"),
        ({"combination": "minimum"}, "combination is of an ensemble; give two proxies at least"),
        ({"sampler": {"temperature": 0}}, "sampler.temperature=0 gives every sample alike"),
    ):
        with pytest.raises(ValueError, match=message):
            config(data, **values)


def judge_kinds() -> list[tuple[str, str | None, bool]]:
    return [("world", None, False), ("m:f", "function", False), ("https://x/y", "endpoint", False),
            ("runs/big/model", "reward_model", False), ("votes.jsonl.gz", None, True)]  # fmt: skip


@pytest.mark.parametrize(("gold", "kind", "judged"), judge_kinds())
def test_what_gold_stands_for(tmp_path: Path, gold: str, kind: str | None, judged: bool) -> None:
    values = config(tmp_path, gold=gold)
    assert (values.gold_reward.name if values.gold_reward else None) == kind
    assert (values.gold_judgments == gold) == judged
