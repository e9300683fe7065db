"""Stages on tiny models: they learn, memory's dials change nothing, and an interruption leaves no trace."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from byhand import grouped
from conftest import SENTENCES, tiny_model
from tutelage.algorithms import learner, make_algorithm
from tutelage.algorithms.learner import Learner
from tutelage.data.candidates import read_candidates, read_samples
from tutelage.data.datasets import read_rankings, write_jsonl
from tutelage.data.records import Completion, Message, Prompt, Ranking, Request, Sample
from tutelage.models.architecture import stop_ids
from tutelage.models.forward import all_scores
from tutelage.models.loading import load_policy, load_scalar, new_scalar, save_model
from tutelage.models.texts import draw_rows, text_backward
from tutelage.models.tokens import encode_pairs, load_tokenizer
from tutelage.rewards.reward_model import RewardModel, covered_kl
from tutelage.runs import DryRun, Run, done, identity_of, inputs_of
from tutelage.sampling.completions import number_copies
from tutelage.sampling.local import LocalSampler
from tutelage.sampling.rollout import Episodes, Rollout, episodes_of
from tutelage.settings.collect import CollectConfig
from tutelage.settings.dpo import DpoConfig
from tutelage.settings.online import OnlineConfig
from tutelage.settings.pretrain import PretrainConfig
from tutelage.settings.reward import MeasureConfig, RewardConfig
from tutelage.settings.sft import SftConfig
from tutelage.settings.training import TrainingConfig
from tutelage.stages import collect, dpo, measure, online, pretrain, reward, sft
from tutelage.stages.pretrain import train_tokenizer
from tutelage.stats.intervals import estimate
from tutelage.training import updates
from tutelage.training.checkpoints import Checkpoint
from tutelage.training.guards import Watch

COLOURS = ("red", "green", "blue", "grey", "white")
STAGES: dict[str, ModuleType] = {"pretrain": pretrain, "sft": sft, "reward": reward, "online": online}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase, folders: Any) -> Path:
    """A policy, a reward model, and every kind of file that the stages read."""
    folder = tmp_path_factory.mktemp("data")
    rng = Random(0)
    prompts = [[{"role": "user", "content": f"Name a colour {'of the sky ' * (i % 4)}{i}."}] for i in range(24)]
    write(folder / "prompts.jsonl", [{"prompt": p} for p in prompts])
    answers = [f"{rng.choice(COLOURS)} {'and ' * rng.randint(0, 6)}{rng.choice(COLOURS)}" for _ in prompts]
    write(folder / "demos.jsonl", [{"prompt": p, "completion": a} for p, a in zip(prompts, answers, strict=True)])
    rankings = []
    for p in prompts:
        k = rng.randint(2, 5)
        texts = rng.sample([f"{a} {b}{'!' * n}" for a in COLOURS for b in COLOURS for n in (0, 9)], k)
        ranks = [1 if "red" in t else 2 + t.count("!") // 9 for t in texts]
        rankings.append(
            {"prompt": p, "completions": texts, "ranks": ranks if len(set(ranks)) > 1 else [*range(1, k + 1)]}
        )
    write(folder / "rankings.jsonl", rankings)
    write(folder / "texts.jsonl", [{"text": " ".join(rng.sample(SENTENCES, 3))} for _ in range(30)])
    model = new_scalar(folders("llama"), tokenizer, seed=1)
    save_model(model, tokenizer, folder / "reward_model")
    return folder


@pytest.fixture
def config(data: Path, folders: Callable[[str], Path], tmp_path: Path) -> Callable[..., Any]:
    """A maker of small configs, each with an output of its own."""
    made = iter(range(1000))
    # A key's bias has no gradient but rounding, which Adam would blow up to a full step with a smaller epsilon.
    common = {"epsilon": 1e-5, "seed": 3}
    kinds: dict[str, tuple[type[TrainingConfig], dict[str, Any]]] = {
        "pretrain": (
            PretrainConfig,
            {
                "texts": data / "texts.jsonl", "valid_texts": data / "texts.jsonl", "vocab_size": 300,
                "hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 24, "sequence_length": 24,
                "batch_tokens": 96, "total_tokens": 96 * 8, "warmup_steps": 2,
            },
        ),
        "sft": (
            SftConfig,
            {
                "model": folders("gpt2"), "demonstrations": data / "demos.jsonl", "epochs": 2, "batch_size": 6,
                "learning_rate": 1e-3, "residual_dropout": 0.1, "pretraining_texts": data / "texts.jsonl",
            },
        ),
        "reward": (
            RewardConfig,
            {
                "model": folders("llama"), "rankings": data / "rankings.jsonl", "demonstrations": data / "demos.jsonl",
                "valid": {"held_out": data / "rankings.jsonl"}, "epochs": 2, "batch_size": 6, "learning_rate": 1e-3,
            },
        ),
        "online": (
            OnlineConfig,
            {
                "model": folders("llama"), "reward_model": data / "reward_model", "prompts": data / "prompts.jsonl",
                "total_episodes": 64, "batch_size": 16, "mini_batch_size": 8, "inner_epochs": 2,
                "learning_rate": 1e-3, "value_learning_rate": 1e-3, "max_new_tokens": 12, "kl_target": 1.0,
                "kl_horizon": 40, "ema_decay": 0.5, "pretraining_texts": data / "texts.jsonl", "ptx_length": 16,
                "ptx_per_episode": 1, "ptx_coef": 1.0, "warmup_steps": 2, "sample_every": 1,
            },
        ),
    }  # fmt: skip

    def make(stage: str, **changes: Any) -> Any:
        kind, values = kinds[stage]
        values = {k: str(v) if isinstance(v, Path) else v for k, v in (values | changes).items()}
        if isinstance(values.get("valid"), dict):
            values["valid"] = {k: str(v) for k, v in values["valid"].items()}
        return kind(**grouped({"output": tmp_path / f"{stage}{next(made)}", **common, **values}))

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def log(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def results(folder: Path) -> dict[str, Any]:
    found = done(folder)
    assert found is not None
    return {k: v for k, v in found.items() if k not in ("seconds", "peak_memory_gib")}


def assert_weights_close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], atol: float) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert_close(tensor, b[name], rtol=0, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((tensor - b[name]).abs().max()) for name, tensor in a.items())


# --- every stage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_micro_batches_never_change_the_result(stage: str, config: Callable[..., Any]) -> None:
    short = {"pretrain": {"total_tokens": 96 * 3}, "online": {"total_episodes": 16}}.get(stage, {"epochs": 1})
    folders = []
    for tokens in (40, 150, 100_000):
        c = config(stage, micro_batch_tokens=tokens, **short, **({"residual_dropout": 0} if stage == "sft" else {}))
        STAGES[stage].run(c)
        folders.append(c.output)
    for folder in folders[1:]:
        assert_weights_close(weights(folder), weights(folders[0]), atol=1e-5)
        for a, b in zip(log(folder), log(folders[0]), strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("when", ["each step", "once"])
@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    stage: str, when: str, config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: weights, metrics, samples, results. Interrupted in the middle of an update, twice."""
    whole = config(stage)
    STAGES[stage].run(whole)
    real, calls = updates.update, []

    class Interruption(Exception):
        pass

    def update(optimizer: Any, model: Any, *rest: Any) -> float:
        norm = real(optimizer, model, *rest)
        calls.append(1)
        if len(calls) in at:  # the model has moved, and nothing of it is saved
            raise Interruption
        return norm

    # Online makes eight updates in each of its four iterations; the others have one in each of eight steps.
    at = (2, 6) if stage != "online" else (4, 19, 33) if when == "each step" else (4, 19, 45)
    # "once": only one checkpoint is written (sft: and one an epoch), so that steps already logged are repeated.
    due = iter([False, True] + 100 * [False])
    if when == "once":
        monkeypatch.setattr(Checkpoint, "due", lambda self: next(due))
    monkeypatch.setattr(learner if stage == "online" else STAGES[stage], "update", update)
    parts = config(stage, checkpoint_seconds=1e-9 if when == "each step" else 1e9)
    for _ in at:
        torch.manual_seed(Random().randrange(1 << 30))  # a new process has another generator
        with pytest.raises(Interruption):
            STAGES[stage].run(parts)
        assert done(parts.output) is None
    assert (parts.output / "state" / "counters.json").exists()
    STAGES[stage].run(parts)
    assert not (parts.output / "state").exists()
    assert distance(weights(parts.output), weights(whole.output)) == 0
    assert log(parts.output) == log(whole.output)
    assert results(parts.output) == results(whole.output)
    if stage == "online":
        assert log(parts.output, "samples.jsonl") == log(whole.output, "samples.jsonl")
        assert len({row["objective/kl_coef"] for row in log(whole.output)}) == 4  # there was a state to remember
    STAGES[stage].run(parts)  # done: skipped
    assert log(parts.output) == log(whole.output)


@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_that_is_no_number_ends_the_run_before_it_spoils_it(
    stage: str, config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = updates.update, []

    def update(optimizer: Any, model: Any, max_norm: float, rate: float, watch: Watch) -> float:
        steps.append(watch.step)
        if watch.step == 1:
            next(model.parameters()).grad[0] = torch.nan  # what a nan loss leaves behind
        return real(optimizer, model, max_norm, rate, watch)

    monkeypatch.setattr(learner if stage == "online" else STAGES[stage], "update", update)
    c = config(stage, checkpoint_seconds=1e-9)
    with pytest.raises(ValueError, match=f"^{stage}: the gradient is nan at step 1; .*{c.output}.*learning_rate"):
        STAGES[stage].run(c)
    assert steps[-1] == 1
    assert json.loads((c.output / "state" / "counters.json").read_text())["step"] == 1
    for file in (c.output / "state").glob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())
    assert done(c.output) is None
    assert log(c.output, "batch-1.jsonl")[0].keys() == {"ids", "text"}  # what it happened on


def test_a_nan_loss_gives_a_nan_gradient(config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    real = sft.nll_sum
    monkeypatch.setattr(sft, "nll_sum", lambda *args: real(*args) * torch.nan)
    with pytest.raises(ValueError, match=r"^sft: the gradient is nan at step 0; no checkpoint had been written yet"):
        sft.run(config("sft"))


BROKEN = {
    "pretrain": ("text_loss", lambda _: torch.nan, "loss on held-out text"),
    "sft": ("validation_loss", lambda _: torch.nan, "loss on held-out demonstrations"),
    "sft, scored": ("mean_score", lambda _: torch.nan, "mean score on held-out prompts"),
    "reward": ("evaluate", lambda measured: measured | {"loss": torch.inf}, "loss on held_out"),
    "online": (
        "scores_of",
        # Of 24 prompts, not of 16 episodes.
        lambda scores: replace(scores, total=scores.total * torch.nan) if len(scores.total) == 24 else scores,
        "mean score of model/",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_measure_that_is_no_number_is_named_and_blames_no_batch(
    case: str, config: Callable[..., Any], folders: Callable[[str], Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, (function, broken, measure) = case.split(",")[0], BROKEN[case]
    real = getattr(STAGES[stage], function)
    monkeypatch.setattr(STAGES[stage], function, lambda *args, **named: broken(real(*args, **named)))
    scored = {"model": folders("llama"), "reward_model": data / "reward_model", "residual_dropout": 0.0}
    c = config(stage, checkpoint_seconds=1e-9, **(scored if "scored" in case else {}))
    for _ in range(2):  # the second goes on from the last checkpoint
        with pytest.raises(ValueError, match=f"^{stage}: the {measure} is (nan|inf), so training has diverged; try a"):
            STAGES[stage].run(c)
    assert not list(c.output.glob("batch-*"))
    assert done(c.output) is None


# --- what they share --------------------------------------------------------------------------------------------------


def test_clipping_clips(folders: Callable[[str], Path], tmp_path: Path) -> None:
    for scale, moved in [(100.0, 0.5), (0.001, 0.002)]:
        model = nn.Linear(4, 1, bias=False)
        before = model.weight.detach().clone()
        (model(torch.full((1, 4), scale)).sum()).backward()
        watch = Watch(Run("x", tmp_path), load_tokenizer(folders("llama")))
        norm = updates.update(torch.optim.SGD(model.parameters(), lr=7), model, 0.5, 1.0, watch)
        assert norm == pytest.approx(2 * scale)  # of four entries, before clipping
        assert float((model.weight - before).detach().norm()) == pytest.approx(moved, rel=1e-4)  # at rate 1, not 7
        assert model.weight.grad is None


def test_schedules() -> None:
    assert updates.cosine(0, 10) == 1
    assert updates.cosine(10, 10) == pytest.approx(0.1)
    assert updates.cosine(5, 10) == pytest.approx(0.55)
    assert updates.cosine(0, 10, warmup=4) == 0.25
    steps = [updates.constant_after_warmup(i, 10) for i in range(13)]
    assert steps[0] == 0.1
    assert steps[5] == pytest.approx(0.55)
    assert steps[10:] == [1, 1, 1]
    assert updates.constant_after_warmup(0, 0) == 1


def test_batches_cover_each_epoch_once_in_another_order() -> None:
    plan = list(updates.batches(range(10), 4, seed=1, epochs=3))
    assert [len(b) for b in plan] == 3 * [4, 4, 2]
    epochs = [[x for batch in plan[i : i + 3] for x in batch] for i in (0, 3, 6)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert plan == list(updates.batches(range(10), 4, seed=1, epochs=3))


# --- pretrain, sft, reward --------------------------------------------------------------------------------------------


def test_pretraining_learns(config: Callable[..., Any]) -> None:
    c = config("pretrain", total_tokens=96 * 60)
    pretrain.run(c)
    losses = [row["loss/train"] for row in log(c.output)]
    assert losses[0] == pytest.approx(5.7, abs=0.5)  # ln 300
    assert sum(losses[-5:]) / 5 < losses[0] - 1.5
    assert results(c.output)["valid_loss"] < losses[0] - 1.5
    tokenizer = load_tokenizer(c.output / "model")
    model = load_policy(c.output / "model", tokenizer)
    assert results(c.output)["parameters"] == model.num_parameters()
    assert tokenizer.decode(tokenizer.encode("Zoë 你好")) == "Zoë 你好"


def test_pretraining_text_too_short_is_refused(config: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Hi.")
    with pytest.raises(ValueError, match=r"the pretraining text has \d tokens, fewer than one row of 24"):
        pretrain.run(config("pretrain", texts=tmp_path / "short.txt"))


def test_sft_learns_its_demonstrations(config: Callable[..., Any], folders: Callable[[str], Path]) -> None:
    c = config("sft", model=folders("llama"), epochs=8, residual_dropout=0, learning_rate=3e-3, pretraining_texts=None)
    sft.run(c)
    losses = [row["loss/train"] for row in log(c.output) if "loss/train" in row]
    assert losses[-1] < losses[0] / 2
    found = results(c.output)
    assert found["chosen_by"] == "validation loss"
    assert found["chosen"]["valid_loss"] == min(e["valid_loss"] for e in found["history"])
    assert found["demonstrations"] == 22  # a tenth is held out
    tokenizer = load_tokenizer(c.output / "model")
    examples, _ = sft.encode(sft.read_demonstrations(c.demonstrations).records, tokenizer, (99, 99, 99))
    model = load_policy(c.output / "model", tokenizer)
    _, held_out = updates.hold_out(examples, range(24), 0.1, c.seed)  # each prompt is there once
    assert found["valid_demonstrations"] == len(held_out) == 2
    assert sft.validation_loss(model, held_out, 1000) == pytest.approx(found["chosen"]["valid_loss"], abs=1e-5)
    assert AutoModelForCausalLM.from_pretrained(c.output / "model")


@given(st.lists(st.integers(0, 5), max_size=30), st.floats(0, 0.99), st.integers(0, 3))
def test_held_out_groups_are_whole(groups: list[int], share: float, seed: int) -> None:
    rest, held = updates.hold_out(list(enumerate(groups)), groups, share, seed)
    assert sorted([*rest, *held]) == list(enumerate(groups))
    inside, outside = {g for _, g in held}, {g for _, g in rest}
    assert not inside & outside
    number = len(set(groups))
    assert len(inside) == (0 if number < 2 or share == 0 else min(max(1, round(share * number)), number - 1))


def test_demonstrations_of_one_prompt_are_all_held_out_or_all_trained_on(
    config: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [{"prompt": f"Name {p}", "completion": f"{a}"} for p in range(10) for a in range(p + 1)]  # 55 of 10 prompts
    write(tmp_path / "d.jsonl", rows)
    c = config("sft", demonstrations=tmp_path / "d.jsonl", epochs=1)
    sft.run(c)
    names = list(dict.fromkeys(row["prompt"] for row in rows))
    _, (held_out,) = updates.hold_out(names, names, 0.1, c.seed)
    number = int(held_out.split()[1]) + 1
    found = results(c.output)
    assert (found["demonstrations"], found["valid_demonstrations"]) == (55 - number, number)


def test_only_completions_are_learnt(tiny: Callable[[str], PreTrainedModel]) -> None:
    policy = tiny("llama")
    example = sft.Example([5, 6, 7], [8, 9])
    logits = policy(torch.tensor([[5, 6, 7, 8, 9]])).logits[0].log_softmax(-1)
    nll, count = sft.examples_nll(policy, [example], 1000)
    assert count == 2
    assert nll == pytest.approx(-(logits[2, 8] + logits[3, 9]).item(), abs=1e-4)


def test_an_sft_update_follows_the_mean_losses(config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """(1 − share) · mean completion loss + share · mean text loss, whatever the micro-batches."""
    c = config("sft", residual_dropout=0, pretraining_share=0.3, micro_batch_tokens=100)
    seen: dict[str, Any] = {}

    def update(optimizer: Any, model: PreTrainedModel, *rest: Any) -> float:
        seen["gradient"] = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        raise KeyboardInterrupt

    real = sft.draw_rows

    def draw_rows(*args: Any) -> torch.Tensor:
        seen["rows"] = real(*args)
        return seen["rows"]

    monkeypatch.setattr(sft, "draw_rows", draw_rows)
    monkeypatch.setattr(sft, "update", update)
    with pytest.raises(KeyboardInterrupt):
        sft.run(c)
    tokenizer = load_tokenizer(c.model)
    policy = load_policy(c.model, tokenizer)
    examples, _ = sft.encode(sft.read_demonstrations(c.demonstrations).records, tokenizer, (99, 99, 99))
    rest, _ = updates.hold_out(examples, [tuple(e.prompt_ids) for e in examples], 0.1, c.seed)
    batch = next(updates.batches(rest, 6, c.seed, 1))

    def losses(ids: list[int], start: int) -> torch.Tensor:
        logits = policy(torch.tensor([ids])).logits[0, start - 1 : -1]
        return nn.functional.cross_entropy(logits, torch.tensor(ids[start:]), reduction="none")

    own = torch.cat([losses(e.prompt_ids + e.completion_ids, len(e.prompt_ids)) for e in batch])
    text = torch.cat([losses(row, 1) for row in seen["rows"].tolist()])
    (0.7 * own.mean() + 0.3 * text.mean()).backward()
    expected = [p.grad for p in policy.parameters() if p.grad is not None]
    for a, b in zip(seen["gradient"], expected, strict=True):
        assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_sft_chooses_by_score(config: Callable[..., Any], data: Path, folders: Callable[[str], Path]) -> None:
    c = config(
        "sft", model=folders("llama"), reward_model=data / "reward_model", epochs=3, residual_dropout=0,
        max_completion_tokens=30,
    )  # fmt: skip
    sft.run(c)
    found = results(c.output)
    assert found["chosen_by"] == "reward model score"
    assert found["chosen"]["score"] == max(e["score"] for e in found["history"])
    assert len({e["score"] for e in found["history"]}) == 3


def test_dropout_where_there_is_none_is_refused(config: Callable[..., Any], folders: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=r"residual_dropout=0.1: LlamaForCausalLM has no dropout; set it to 0"):
        sft.run(config("sft", model=folders("llama")))


def test_too_long_is_dropped_and_counted(config: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    long, rows = "very " * 60, [json.loads(line) for line in (data / "demos.jsonl").read_text().splitlines()]
    write(tmp_path / "d.jsonl", [*rows, {"prompt": long, "completion": "x"}, {"prompt": "x", "completion": long}])
    c = config("sft", demonstrations=tmp_path / "d.jsonl", epochs=1, max_prompt_tokens=80, max_completion_tokens=60)
    sft.run(c)
    assert results(c.output)["dropped"] == {"too long": 2}

    rows = [json.loads(line) for line in (data / "rankings.jsonl").read_text().splitlines()]
    extra = [{"prompt": long, "completions": ["a", "b"], "ranks": [1, 2]}]
    extra += [{"prompt": "x", "completions": ["a", long * 3], "ranks": [1, 2]}]
    write(tmp_path / "r.jsonl", [*rows, *extra])
    c = config("reward", rankings=tmp_path / "r.jsonl", epochs=1, max_prompt_tokens=80)
    reward.run(c)
    assert results(c.output)["dropped"] == {"too long": 2}
    assert results(c.output)["rankings"] == len(rows)

    rows = [json.loads(line) for line in (data / "prompts.jsonl").read_text().splitlines()]
    write(tmp_path / "p.jsonl", [*rows, {"prompt": long}, {"prompt": "ok"}])
    c = config("online", prompts=tmp_path / "p.jsonl", total_episodes=16, max_prompt_tokens=80)
    online.run(c)
    assert (results(c.output)["dropped"], results(c.output)["prompts"]) == (
        {"too long": 1},
        len(rows) + 1,
    )


@pytest.mark.parametrize(("stage", "name"), [("sft", "demonstrations"), ("reward", "rankings"), ("online", "prompts")])
def test_nothing_left_is_an_error(stage: str, name: str, config: Callable[..., Any], tmp_path: Path) -> None:
    long = "very " * 60
    rows = {"demonstrations": {"completion": "x"}, "rankings": {"chosen": "x", "rejected": "y"}, "prompts": {}}
    write(tmp_path / "d.jsonl", [{"prompt": f"{long} {i}", **rows[name]} for i in range(20)])
    with pytest.raises(ValueError, match=f"{tmp_path / 'd.jsonl'}.*20|20.*{tmp_path / 'd.jsonl'}"):
        STAGES[stage].run(config(stage, **{name: tmp_path / "d.jsonl", "max_prompt_tokens": 20}))


@pytest.mark.parametrize("name", ["valid", "demonstrations"])
def test_reward_sets_with_nothing_left_are_errors(name: str, config: Callable[..., Any], tmp_path: Path) -> None:
    row = {"prompt": "very " * 200, "completion": "x", "chosen": "x", "rejected": "y"}
    write(tmp_path / "d.jsonl", [row])
    value = {"mine": tmp_path / "d.jsonl"} if name == "valid" else tmp_path / "d.jsonl"
    with pytest.raises(ValueError, match=f"{tmp_path / 'd.jsonl'}"):
        reward.run(config("reward", **{name: value}))


def test_the_reward_model_learns_to_rank(config: Callable[..., Any], data: Path) -> None:
    c = config("reward", epochs=12, learning_rate=3e-3)
    reward.run(c)
    found = results(c.output)
    held_out = found["valid"]["held_out"]
    assert held_out["accuracy"] > 0.9
    assert held_out["low"] <= held_out["accuracy"] <= held_out["high"]
    rankings = [json.loads(line)["ranks"] for line in (data / "rankings.jsonl").read_text().splitlines()]
    pairs = sum(a < b for ranks in rankings for a in ranks for b in ranks)
    assert held_out["pairs"] == pairs == sum(n for _, _, n in held_out["calibration"])
    assert found["demonstration_score"] == pytest.approx(0, abs=1e-4)
    tokenizer = load_tokenizer(c.output / "model")
    assert load_scalar(c.output / "model", tokenizer).score.out_features == 1


def test_a_tenth_of_the_prompts_is_held_out_and_the_verdict_said(
    config: Callable[..., Any], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (data / "rankings.jsonl").read_text().splitlines()]
    write(tmp_path / "r.jsonl", [row | {"id": f"{i}-{n}"} for i, row in enumerate(rows) for n in range(2)])
    twice = tmp_path / "r.jsonl"  # each prompt was ranked by two, and their rows have ids of their own
    c = config("reward", rankings=twice, valid={}, epochs=12, learning_rate=3e-3)
    reward.run(c)
    found = results(c.output)
    texts = [json.dumps(row["prompt"]) for row in rows]
    prompts = [r.prompt.text for r in read_rankings(twice).records[::2]]
    _, held_out = updates.hold_out(range(24), prompts, 0.1, c.seed)
    ranks = [rows[i]["ranks"] for i in held_out]
    assert len(held_out) == 2
    assert len(set(texts)) == 24
    assert found["rankings"] == 44
    assert found["valid"]["held_out"]["rankings"] == 4
    assert found["valid"]["held_out"]["pairs"] == 2 * sum(a < b for of in ranks for a in of for b in of)
    said = capsys.readouterr().err
    assert f"reward: held_out: {found['verdict']['held_out']}" in said

    c = config("reward", valid={}, held_out=0, epochs=1)
    reward.run(c)
    assert (results(c.output)["rankings"], results(c.output)["valid"]) == (24, {})
    assert "reward: nothing was held out, so nothing says whether it learned" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("low", "accuracy", "high", "words"),
    [
        (0.68, 0.71, 0.74, "learned: 0.71 [0.68, 0.74] of 1,234 pairs in order (56 prompts), where chance"),
        (
            0.5,
            0.6,
            0.7,
            "not shown to be better than chance: 0.60 [0.50, 0.70] of 1,234 pairs in order (56 prompts)",
        ),
        (
            0.4,
            0.5,
            0.6,
            "not shown to be better than chance: 0.50 [0.40, 0.60] of 1,234 pairs in order (56 prompts)",
        ),
        (
            0.3,
            0.4,
            0.5,
            "not shown to be better than chance: 0.40 [0.30, 0.50] of 1,234 pairs in order (56 prompts)",
        ),
        (
            0.2,
            0.3,
            0.4,
            "worse than chance: 0.30 [0.20, 0.40] of 1,234 pairs in order (56 prompts); look",
        ),
    ],
)
def test_the_verdict_follows_the_interval(low: float, accuracy: float, high: float, words: str) -> None:
    found = {"low": low, "accuracy": accuracy, "high": high, "pairs": 1234, "prompts": 56}
    assert reward.verdict(found).startswith(words)


def test_the_plan_names_the_sets_that_are_held_out(
    config: Callable[..., Any], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = {"a": data / "rankings.jsonl", "b": data / "rankings.jsonl"}
    write(tmp_path / "one.jsonl", [{"prompt": "q", "completions": ["x", "y"], "ranks": [1, 2]}])
    for changes, said in (
        ({"valid": twice}, "24 (a), 24 (b)"),
        ({"valid": {}, "rankings": tmp_path / "one.jsonl"}, "none"),  # one prompt is not split
    ):
        with pytest.raises(DryRun):
            reward.run(config("reward", dry_run=True, **changes))
        assert f"; held out: {said}\n" in capsys.readouterr().err


def test_rankings_that_are_too_long_are_counted_wherever_they_are(
    config: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (data / "rankings.jsonl").read_text().splitlines()]
    long = [row | {"prompt": f"{'very ' * 200} {i}"} for i, row in enumerate(rows[:12])]
    write(tmp_path / "r.jsonl", [*rows, *long])
    c = config("reward", rankings=tmp_path / "r.jsonl", valid={}, held_out=0.5, epochs=1)
    reward.run(c)
    found = results(c.output)
    assert found["dropped"] == {"too long": 12}
    assert found["rankings"] + found["valid"]["held_out"]["rankings"] == 24
    assert found["valid"]["held_out"]["rankings"] not in (0, 18, 24)  # some of the long ones were held out
    c = config("reward", valid={"mine": tmp_path / "r.jsonl"}, epochs=1)
    reward.run(c)
    assert results(c.output)["dropped"] == {"too long in valid.mine": 12}


def test_the_interval_is_a_function_of_the_seed(folders: Callable[[str], Path], tokenizer: Any) -> None:
    rng = Random(0)
    model = new_scalar(folders("llama"), tokenizer, seed=1)
    elements = [
        reward.Element([[5, 6, i + 20, rng.randrange(200)] for _ in range(3)], torch.tensor([1, 2, 3]), f"prompt {i}")
        for i in range(60)
    ]
    once, again, *others = (reward.evaluate(model, elements, 2048, seed) for seed in (1, 1, 2, 3, 4, 5, 6))
    assert once == again
    assert len({(found["low"], found["high"]) for found in others}) > 1
    assert {found["accuracy"] for found in others} == {once["accuracy"]}


def test_measuring_a_reward_model_gives_what_training_reported(
    config: Callable[..., Any], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    c = config("reward", epochs=2)
    reward.run(c)
    rankings = str(data / "rankings.jsonl")
    wanted = MeasureConfig(output=tmp_path / "m", reward_model=str(c.output / "model"), rankings=rankings)
    measure.run(wanted)
    found, trained = results(wanted.output), results(c.output)["valid"]["held_out"]
    for key in ("accuracy", "pairs", "rankings", "loss"):
        assert found[key] == pytest.approx(trained[key], abs=1e-5)
    out = capsys.readouterr().out
    assert found["verdict"] in out
    assert f"{found['pairs']:,}" in out
    (warning,) = found["warnings"]
    assert "the reward model was trained on these very rankings" in warning
    (tmp_path / "others.jsonl").write_text("".join((data / "rankings.jsonl").read_text().splitlines(True)[:5]))
    others = {"output": tmp_path / "others", "rankings": (str(tmp_path / "others.jsonl"),)}
    measure.run(wanted.model_copy(update=others))
    assert results(tmp_path / "others")["warnings"] == []

    several = config("reward", rankings=[str(tmp_path / "others.jsonl"), rankings], held_out=0)
    reward.run(several)
    again = {"output": tmp_path / "again", "reward_model": str(several.output / "model")}
    measure.run(wanted.model_copy(update=again))
    assert "trained on these very rankings" in results(tmp_path / "again")["warnings"][0]

    write(tmp_path / "long.jsonl", [{"prompt": "very " * 200, "chosen": "x", "rejected": "y"}])
    long = {"output": tmp_path / "n", "rankings": (str(tmp_path / "long.jsonl"),)}
    with pytest.raises(ValueError, match=r"long.jsonl: no ranking left to measure by \(dropped: \{\}, too long: 1\)"):
        measure.run(wanted.model_copy(update=long))


def test_rankings_of_ties_only_are_skipped_and_counted(config: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    rows = (data / "rankings.jsonl").read_text()
    tied = [{"prompt": "x", "completions": ["a", "b", "c"], "ranks": [2, 2, 2]}]
    write(tmp_path / "r.jsonl", tied)
    (tmp_path / "r.jsonl").write_text((tmp_path / "r.jsonl").read_text() + rows)
    c, without = config("reward", epochs=1, rankings=tmp_path / "r.jsonl"), config("reward", epochs=1)
    reward.run(c)
    reward.run(without)
    assert results(c.output)["dropped"] == {"all completions tied": 1}
    assert distance(weights(c.output), weights(without.output)) == 0


@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_rankings_of_several_files_are_read_as_one(stage: str, config: Callable[..., Any], data: Path) -> None:
    """The same model as from all rows in one file; each file is an input of the run, wherever it lies."""
    rows = (data / "rankings.jsonl").read_text().splitlines(True)
    parts = [data / "part1.jsonl", data / "part2.jsonl"]
    for part, text in zip(parts, ("".join(rows[:9]), "".join(rows[9:])), strict=True):
        part.write_text(text)

    def fitted(rankings: Any) -> Any:
        c = config("reward", rankings=rankings)
        if stage == "dpo":
            small = {"batch_size": 8, "optimizer": {"learning_rate": 1e-3}}
            c = DpoConfig(output=c.output, model=c.model, rankings=rankings, **small)
        {"reward": reward, "dpo": dpo}[stage].run(c)
        return c

    whole, split = fitted(str(data / "rankings.jsonl")), fitted([str(part) for part in parts])
    assert_weights_close(weights(whole.output), weights(split.output), atol=0)
    assert results(whole.output)["rankings"] == results(split.output)["rankings"] > 0
    one, two = (identity_of(c.output) for c in (whole, split))
    assert {"rankings.1", "rankings.2"} <= set(two["inputs"])
    assert "rankings" in one["inputs"]
    assert not [name for each in (one, two) for name in each["settings"] if name.startswith("rankings")]
    assert inputs_of(split, "rankings") == {"rankings.1": parts[0], "rankings.2": parts[1]}


def test_a_learning_curve_is_of_nested_shares_measured_alike(
    config: Callable[..., Any], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each point is a run that could be made by itself; the whole is the run's own; what is done is not done again."""
    c = config("reward", valid={}, held_out=0.25, learning_curve=[0.5, 0.25, 1.0], epochs=1, demonstrations=None)
    reward.run(c)
    whole = results(c.output)
    points = whole["learning_curve"]
    assert [(p["share"], p["prompts"]) for p in points] == [(0.25, 5), (0.5, 9), (1.0, 18)]  # of 18, rounded up
    assert points[-1]["valid"] == whole["valid"]
    files = [c.output / "curve" / f"{name}.jsonl" for name in ("0.25", "0.5", "held_out")]
    small, half, held_out = ({r.prompt.identity for r in rankings_of(path)} for path in files)
    assert small < half
    assert not half & held_out
    assert len(held_out) == 6
    for point, path in zip(points, files[:2], strict=False):
        assert point["rankings"] == len(rankings_of(path))
        own = config("reward", rankings=path, valid={"held_out": files[2]}, epochs=1, demonstrations=None)
        reward.run(own)
        assert results(own.output)["valid"] == point["valid"]
        assert point["valid"]["held_out"]["prompts"] == 6
    plain = config("reward", valid={}, held_out=0.25, epochs=1, demonstrations=None)
    reward.run(plain)
    assert distance(weights(plain.output), weights(c.output)) == 0
    assert results(plain.output)["valid"] == whole["valid"]
    assert whole["completions"] == sum(len(r.ranks) for r in rankings_of(data / "rankings.jsonl")) - sum(
        len(r.ranks) for r in rankings_of(files[2])
    )
    # Interrupted in the second point: the first is there.
    parts = c.model_copy(update={"output": c.output.with_name("parts")})
    real, runs = reward.begin, []

    def begin(opened: Any, *rest: Any, **more: Any) -> None:
        runs.append(opened.folder.name)
        if runs == ["parts", "0.25", "0.5"]:
            raise KeyboardInterrupt
        real(opened, *rest, **more)

    monkeypatch.setattr(reward, "begin", begin)
    with pytest.raises(KeyboardInterrupt):
        reward.run(parts)
    reward.run(parts)
    assert runs == ["parts", "0.25", "0.5", "parts", "0.5"]
    assert results(parts.output) == whole
    with pytest.raises(ValueError, match="learning_curve needs held-out rankings to measure by; set held_out above 0"):
        config("reward", valid={}, held_out=0, learning_curve=[0.5])


def rankings_of(path: Path) -> list[Any]:
    return read_rankings(path).records


def test_one_ranking_by_hand(tiny: Callable[[str], PreTrainedModel], folders: Any, tokenizer: Any) -> None:
    """All pairs of all elements come from one pass over packed trees."""
    model = new_scalar(folders("llama"), tokenizer, seed=1)
    elements = [
        reward.Element([[5, 6, 7, 8], [5, 6, 9]], torch.tensor([2, 1]), "p"),
        reward.Element([[9, 9], [9, 8, 7, 6, 5, 4], [9, 3]], torch.tensor([1, 2, 2]), "q"),
    ]
    alone = [[float(all_scores(model, [s])[0]) for s in e.sequences] for e in elements]
    (group,) = reward.micro_scores(model, elements, 1000)
    assert [e for e, _ in group] == elements  # the shorter tree first, which is their order here
    for (_, scores), expected in zip(group, alone, strict=True):
        assert scores.tolist() == pytest.approx(expected, abs=1e-5)
    found = reward.evaluate(model, elements, 1000)
    margins = [alone[0][1] - alone[0][0], alone[1][0] - alone[1][1], alone[1][0] - alone[1][2]]
    assert found["accuracy"] == pytest.approx(sum(m > 0 for m in margins) / 3)


def test_a_valid_set_of_prompts_trained_on_is_called_that(
    config: Callable[..., Any], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    c = config("reward", valid={"same": data / "rankings.jsonl"}, demonstrations=None)
    reward.run(c)
    found = results(c.output)
    said = f"but {found['valid']['same']['prompts']} of its {found['valid']['same']['prompts']} prompts are among those"
    assert found["prompts_trained_on"] == {"same": found["valid"]["same"]["prompts"]}
    assert said in found["verdict"]["same"]
    assert said in capsys.readouterr().err
    measured, _, warning = found["verdict"]["same"].partition("; but ")
    assert measured == reward.verdict(found["valid"]["same"])
    assert warning.endswith(
        "are among those trained on, so this is no measure of new ones: leave them out of one of the two files"
    )


def test_equal_scores_are_half_right_in_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    elements = [reward.Element([[2, 3], [2, 4]], torch.tensor([1, 2]), str(i)) for i in range(4)]
    monkeypatch.setattr(reward, "micro_scores", lambda *_: iter([[(e, torch.zeros(2)) for e in elements]]))
    found = reward.evaluate(torch.nn.Linear(1, 1), elements, 1000)  # type: ignore[arg-type]
    assert found["accuracy"] == 0.5
    assert found["calibration"] == [[0.5, 0.5, 4]]


def test_a_ranking_is_of_the_prompt_that_its_text_is(tokenizer: PreTrainedTokenizerBase) -> None:
    two = (Completion(text="x"), Completion(text="y"))
    asked = [Prompt(id=i, text=text) for i, text in (("1", "a"), ("2", "a"), ("1", "b"))]
    rankings = [Ranking(prompt=p, completions=two, ranks=(1, 2)) for p in asked]
    elements, _ = reward.encode(rankings, tokenizer, 99, 99)
    assert len({e.prompt for e in elements}) == 2
    assert elements[0].prompt == elements[1].prompt


def test_accuracy_takes_all_rankings_of_a_prompt_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen labelers who rank the same two completions of a prompt are right or wrong together."""
    model = torch.nn.Linear(1, 1)
    right = [i % 4 != 0 for i in range(40)]  # of forty prompts, thirty
    elements = [
        reward.Element([[2, 3], [2, 4]], torch.tensor([1, 2]), str(i)) for i in range(40) for _ in range(16)
    ]  # fmt: skip

    def scores(model: Any, elements: Any, max_tokens: int) -> Any:
        yield [(e, torch.tensor([1.0, 0.0] if right[int(e.prompt)] else [0.0, 1.0])) for e in elements]

    monkeypatch.setattr(reward, "micro_scores", scores)
    found = reward.evaluate(model, elements, 1000)  # type: ignore[arg-type]
    assert (found["accuracy"], found["rankings"], found["pairs"], found["prompts"]) == (0.75, 640, 640, 40)
    expected = estimate([float(r) for r in right])
    assert (found["low"], found["high"]) == (expected["low"], expected["high"])
    assert found["high"] - found["low"] > 0.22  # 2 · 1.96 · √(.75 · .25 / 40) = 0.27; of 640 units it would be 0.07
    assert found["calibration"] == [[0.7311, 0.75, 640]]


# --- collect ----------------------------------------------------------------------------------------------------------


def test_collect_writes_distinct_candidates(data: Path, folders: Callable[[str], Path], tmp_path: Path) -> None:
    values = {
        "prompts": str(data / "prompts.jsonl"), "policies": {"a": str(folders("llama")), "b": str(folders("gpt2"))},
        "k": "2..4", "sampler": {"max_new_tokens": 8}, "few_shot": ["b"], "examples": str(data / "demos.jsonl"),
        "shots": 1, "off_prompt": 0.2,
    }  # fmt: skip
    outputs = [tmp_path / "one", tmp_path / "two"]
    for output in outputs:
        collect.run(CollectConfig(output=output, **values))
    text = (outputs[0] / "candidates.jsonl").read_text()
    assert text == (outputs[1] / "candidates.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == results(outputs[0])["prompts"]
    for row in rows:
        texts = [c["text"] for c in row["completions"]]
        assert 2 <= len(set(texts)) == len(texts) <= 4
    assert {"a", "b"} <= {c["policy"] for row in rows for c in row["completions"]}
    with pytest.raises(ValueError, match=r"'c' is not among the policies \['a', 'b'\]"):
        collect.run(CollectConfig(output=tmp_path / "x", **values | {"few_shot": ["c"]}))


# --- online -----------------------------------------------------------------------------------------------------------


def test_equal_completions_are_merged_and_counted_as_sampled(
    data: Path, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """Two policies that leave little to chance, so that four samples of a prompt are often two texts."""
    policies = {"a": str(folders("llama")), "b": str(folders("gpt2"))}
    sampler = {"max_new_tokens": 8, "temperature": 0.001}
    prompts = str(data / "prompts.jsonl")
    collect.run(CollectConfig(output=tmp_path, prompts=prompts, policies=policies, k=4, sampler=sampler))
    several = read_samples(tmp_path / "candidates.jsonl")
    assert {each.sampled for each in several} == {4}
    assert min(len(each.completions) for each in several) == 2
    assert results(tmp_path)["prompts"] == len(several) > 10


def test_off_prompt_completions_come_from_another_prompt() -> None:
    for seed in range(200):
        rng = Random(seed)
        texts = [f"prompt {rng.randrange(4)}" for _ in range(30)]
        moved = sorted(rng.sample(range(30), rng.randint(0, 12)))
        found = collect.other_prompts(moved, texts)
        assert all(texts[i] != texts[j] for i, j in found.items())
        assert sorted(found) == sorted(found.values())  # each gives its own once
        counts = Counter(texts[i] for i in moved)
        most = max(counts.values(), default=0)
        assert len(found) == min(len(moved), 2 * (len(moved) - most))  # as many as can be
    assert collect.other_prompts([0, 1, 2], ["p", "p", "q"]) in ({0: 2, 2: 0}, {1: 2, 2: 1})


def test_off_prompt_with_one_prompt_is_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "Only this.", "id": str(i)} for i in range(3)])
    values = {"prompts": str(tmp_path / "p.jsonl"), "policy": str(folders("llama")), "off_prompt": 0.2}
    with pytest.raises(ValueError, match=r"off_prompt=0\.2: .*p\.jsonl holds one prompt"):
        collect.run(CollectConfig(output=tmp_path / "out", **values))


def test_a_prompt_that_comes_twice_gets_samples_of_its_own(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """In whatever order, and beside other prompts, whose samples stay as they are."""
    twice = [{"prompt": "a b c"}, {"prompt": "c d"}, {"prompt": "a b c"}]

    def collected(rows: list[dict[str, str]], name: str) -> list[tuple[str, ...]]:
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
        values = {"prompts": str(tmp_path / f"{name}.jsonl"), "policy": str(folders("llama")), "k": "3"}
        collect.run(CollectConfig(output=tmp_path / name, sampler={"max_new_tokens": 8}, **values))
        return [tuple(c.text for c in found) for _, found in read_candidates(tmp_path / name / "candidates.jsonl")]

    first, other, second = collected(twice, "twice")
    assert len({first, other, second}) == 3
    assert collected(twice[:2], "once") == [first, other]
    prompts = [Prompt(id=name, text="x") for name in "abaab"]
    assert number_copies(prompts) == [0, 0, 1, 2, 1]


def test_the_average_lags_as_lerp_says_in_fp32(config: Callable[..., Any], data: Path) -> None:
    last, averaged = [], []
    for iterations in (1, 2):
        for decay, kept in ((0.0, last), (0.75, averaged)):
            c = config("online", total_episodes=16 * iterations, ema_decay=decay)
            online.run(c)
            kept.append(weights(c.output))
    start = load_file(Path(c.model) / "model.safetensors")
    assert distance(start, last[0]) > 1e-4
    assert all(t.dtype == torch.float32 for t in averaged[1].values())
    first = {k: 0.75 * start[k] + 0.25 * last[0][k] for k in start}
    second = {k: 0.75 * first[k] + 0.25 * last[1][k] for k in start}
    assert_weights_close(averaged[0], first, atol=1e-6)
    assert_weights_close(averaged[1], second, atol=1e-6)


def test_the_decay_follows_the_length_of_the_run(config: Callable[..., Any]) -> None:
    """The start weighs as much at the end as in the paper: 0.992^500 = 0.018."""
    c = config("online", ema_decay=None)
    assert online.average_decay(c, 500) == 0.992
    assert online.average_decay(c, 30) == pytest.approx(0.8747, abs=1e-4)
    for iterations in (1, 30, 40, 2000):
        assert online.average_decay(c, iterations) ** iterations == pytest.approx(0.01803, abs=1e-5)
    assert online.average_decay(config("online", ema_decay=0.0), 30) == 0.0


def test_how_far_the_average_has_gone() -> None:
    models = [nn.Linear(2, 1) for _ in range(3)]
    for model, (a, b, bias) in zip(models, ((2.0, 1.0, 5.0), (5.0, 7.0, 11.0), (1.0, -1.0, 3.0)), strict=True):
        model.load_state_dict({"weight": torch.tensor([[a, b]]), "bias": torch.tensor([bias])})
    average, last, start = models
    assert online.moved(average, last, start) == pytest.approx(3 / 12)  # lengths 3 and 12
    assert online.moved(start, start, start) == 1.0


def test_the_average_and_the_last_weights_are_kept_and_measured(
    config: Callable[..., Any], data: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    c = config("online", ema_decay=0.9)
    online.run(c)
    found = results(c.output)
    weight = {name: load_file(c.output / name / "model.safetensors") for name in ("model", "last")}
    start = load_file(Path(c.model) / "model.safetensors")
    assert 0 < distance(start, weight["model"]) < distance(start, weight["last"])
    judge, reference = load_scalar(c.reward_model, tokenizer), load_policy(c.model, tokenizer)
    asked = online.usable_prompts(c, online.load_models(c, make_algorithm(c.algorithm, c.batch_size)))[0]
    printed = capsys.readouterr().err
    for name, values in found["final"].items():
        policy = load_policy(c.output / name, tokenizer)
        order = updates.shuffled(asked, c.seed, -1)
        rollout = online.sample(LocalSampler(policy), stop_ids(policy), order, 4, c)
        assert values["score"] == pytest.approx(float(all_scores(judge, rollout.sequences).mean()), abs=1e-4)
        assert values["length"] == pytest.approx(float(rollout.mask.sum(1).float().mean()))
        before = online.completion_logprobs(reference, rollout.sequences, rollout.prompt_lengths, c.sampler.temperature)
        gap = torch.where(rollout.mask, rollout.logprobs - before, 0.0)
        assert values["kl"] == pytest.approx(float(gap.sum(1).mean()), abs=1e-3)
        means = "  ".join(f"{key} {values[key]:.3f}" for key in ("score", "kl", "length"))
        assert f"online: {name}/: {means}  (mean over {len(asked)} prompts)" in printed
    assert found["final"]["last"]["kl"] > found["final"]["model"]["kl"] > 0
    assert found["average_moved"] < 0.5
    (warning,) = found["warnings"]
    assert f"moved only {found['average_moved']:.0%} as far from the start" in warning
    assert "ema_decay=0.9 over 4 iterations" in warning
    assert warning.endswith(
        "that the run began with. last/ holds the last weights; a lower ema_decay, or leaving it out, gives an average "
        "of this run"
    )
    assert f"online: warning: {warning}" in printed

    for decay in (None, 0.0):
        c = config("online", ema_decay=decay)
        online.run(c)
        found = results(c.output)
        assert (found["warnings"], found["average_moved"] > 0.5) == ([], True)
        same = distance(weights(c.output), load_file(c.output / "last" / "model.safetensors")) == 0
        assert same == (decay == 0) == (found["average_moved"] == 1)


def test_the_final_kl_is_measured_at_the_temperature_of_sampling(config: Callable[..., Any]) -> None:
    """The policy has not moved, so it is the reference: their KL is 0 at any one temperature."""
    c = config("online", learning_rate=1e-12, temperature=0.5, pretraining_texts=None, total_episodes=8)
    online.run(c)
    assert results(c.output)["final"]["last"]["kl"] == pytest.approx(0, abs=1e-4)


def test_after_a_resume_the_reference_is_the_sft_policy(
    config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    c = config("online", checkpoint_seconds=1e-9)
    start = load_file(Path(c.model) / "model.safetensors")
    real_logprobs, real_improve, asked = online.completion_logprobs, Learner.improve, []

    def logprobs(model: PreTrainedModel, *args: Any) -> torch.Tensor:
        asked.append(distance(start, model.state_dict()))
        return real_logprobs(model, *args)

    def improve(self: Learner, rollout: Rollout, iteration: int, *rest: Any) -> Any:
        if iteration == 2 and len(asked) == 3:
            raise KeyboardInterrupt
        return real_improve(self, rollout, iteration, *rest)

    monkeypatch.setattr(online, "completion_logprobs", logprobs)
    monkeypatch.setattr(Learner, "improve", improve)
    with pytest.raises(KeyboardInterrupt):
        online.run(c)
    online.run(c)
    assert asked == [0.0] * 7  # three iterations, the third and the fourth again, both models at the end
    kls = [row["objective/kl"] for row in log(c.output)]
    assert kls[0] == pytest.approx(0, abs=1e-5)
    assert min(abs(kl) for kl in kls[1:]) > 1e-4


def test_the_score_lands_on_the_last_generated_token(
    config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> None:
    seen: list[Rollout] = []
    real = Learner.improve

    def improve(self: Learner, rollout: Rollout, *rest: Any) -> Any:
        seen.append(rollout)
        return real(self, rollout, *rest)

    monkeypatch.setattr(Learner, "improve", improve)
    # Make the end token likely, so that some completions end and some are cut off.
    c = config("online", total_episodes=16, kl_coef=0.0, kl_target=None, missing_eos_penalty=2.5, temperature=3.0)
    online.run(c)
    (rollout,) = seen
    rewards, finals = rollout.rewards, []
    for i, sequence in enumerate(rollout.sequences):
        length = len(sequence) - rollout.prompt_lengths[i]
        assert int(rollout.mask[i].sum()) == length
        finals.append(sequence[-1] == tokenizer.eos_token_id)
        expected = torch.zeros(rewards.shape[1])
        expected[length - 1] = rollout.scores[i] - (0 if finals[-1] else 2.5)
        assert_close(rewards[i], expected)
    model = load_scalar(c.reward_model, tokenizer)
    assert_close(rollout.scores, all_scores(model, rollout.sequences), rtol=0, atol=1e-5)
    (row,) = log(c.output)
    assert row["objective/ended"] == pytest.approx(sum(finals) / 16)
    assert row["objective/length"] == pytest.approx(float(rollout.mask.sum() / 16))
    assert row["val/ratio"] == pytest.approx(1, abs=0.2)


def test_a_reward_model_reads_its_own_template(
    config: Callable[..., Any],
    folders: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Same tokens, another template: it scores the texts as it was trained to read them, each with its end."""
    other = load_tokenizer(folders("llama"))
    other.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<assistant>"
    save_model(new_scalar(folders("llama"), other, 0), other, tmp_path / "reward")
    c = config("online", reward_model=tmp_path / "reward", total_episodes=16, pretraining_texts=None, max_new_tokens=80)
    read: list[list[int]] = []
    ends: list[bool] = []
    real_scores, real_encode, real_scores_of = RewardModel.scores, RewardModel.encode, online.scores_of

    def scores(self: RewardModel, sequences: Any) -> torch.Tensor:
        read.extend(sequences)
        return real_scores(self, sequences)

    def scores_of(models: Any, episodes: Episodes) -> torch.Tensor:
        def encode(self: RewardModel, prompts: Any, texts: Any, ended: Any) -> list[list[int]]:
            assert list(ended) == [ids[-1] == other.eos_token_id for ids in episodes.sequences]
            ends.extend(ended)
            first, *others = real_encode(self, prompts, texts, ended)
            return [first + [5] * 128, *others]  # as bytes that are no characters become longer

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RewardModel, "encode", encode)
            return real_scores_of(models, episodes)

    monkeypatch.setattr(RewardModel, "scores", scores)
    monkeypatch.setattr(online, "scores_of", scores_of)
    online.run(c)
    texts = [other.decode(ids) for ids in read]
    assert len(texts) == len(ends) == 16 + 2 * 24  # an iteration, and both sets of weights at the end
    assert {True, False} == set(ends)
    assert [len(read[i]) for i in (0, 16, 40)] == [128] * 3  # cut at the reward model's context
    assert all(text.startswith("<user>") and "<|endoftext|><assistant>" in text for text in texts)
    with pytest.raises(ValueError, match="reward: its chat template differs"):
        sft.run(config("sft", reward_model=tmp_path / "reward"))


def one_episode(prompt: Prompt, ids: list[int], more: list[int]) -> Episodes:
    """An episode of these ids that was cut off."""
    return episodes_of(
        [prompt],
        [Request(tuple(ids), 0, len(more), ())],
        [Sample(tuple(more), (0.0,) * len(more), "length")],
    )


def test_what_goes_on_a_string_is_read_with_the_space_at_the_seam(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """Of a prompt that is a string the completion goes on as it is; of a conversation it is the words of a turn."""
    tokenizer, reader = load_tokenizer(folders("llama")), load_tokenizer(folders("llama"))
    reader.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<assistant>"
    save_model(new_scalar(folders("llama"), reader, 0), reader, tmp_path)
    ids = tokenizer.encode("Name a colour", add_special_tokens=False)
    more = tokenizer.encode(" of the sky", add_special_tokens=False)
    for text, answer in (("Name a colour", " of the sky"), ((Message(role="user", content="?"),), "of the sky")):
        episodes = one_episode(Prompt(id="p", text=text), ids, more)
        assert episodes.texts(tokenizer) == [answer]
        reward = RewardModel(str(tmp_path))
        expected = [a + b for a, b in encode_pairs(reader, [(text, answer, False)])]
        assert reward.encode(episodes.prompts, episodes.texts(tokenizer), [False]) == expected


def test_prompts_that_are_too_long_for_the_reward_models_template_are_dropped(
    config: Callable[..., Any], folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """Prompts of ever one word more: of those that fit the policy, those that fit the reader's 128 tokens as well."""
    reader = load_tokenizer(folders("llama"))
    reader.chat_template = (
        "{% for m in messages %}<|start of a turn by the {{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    save_model(new_scalar(folders("llama"), reader, 0), reader, tmp_path / "reward")
    texts = [(Message(role="user", content="a" + " the" * n),) for n in range(40, 80)]
    write_jsonl(tmp_path / "prompts.jsonl", [Prompt(id=str(i), text=text) for i, text in enumerate(texts)])
    lengths = [len(a) + len(b) for a, b in encode_pairs(reader, [(text, "", True) for text in texts])]
    assert {116, 117} <= set(lengths)  # exactly 128 with an answer of 12 and its end, and one too many
    c = config(
        "online", reward_model=tmp_path / "reward", prompts=tmp_path / "prompts.jsonl", total_episodes=16,
        pretraining_texts=None, ema_decay=None,
    )  # fmt: skip
    online.run(c)
    found = results(c.output)
    fits = sum(length + 12 <= 128 for length in lengths)
    assert 0 < fits < 40
    assert found["prompts"] == fits
    assert sum(found["dropped"].values()) == 40 - fits
    assert found["dropped"]["too long for the reward model"] == 40 - fits - found["dropped"].get("too long", 0)
    assert found["ema_decay"] == pytest.approx(0.992**500)  # of a single iteration
    (row,) = log(c.output)
    assert isinstance(row["val/explained_variance"], float)


def test_without_an_average_the_last_weights_are_the_model(config: Callable[..., Any]) -> None:
    """And samples are kept every second iteration, and of the last."""
    c = config("online", ema_decay=0, sample_every=2)
    online.run(c)
    last = load_file(c.output / "last" / "model.safetensors")
    assert distance(weights(c.output), last) == 0
    assert distance(last, load_file(Path(c.model) / "model.safetensors")) > 0
    assert {row["iteration"] for row in log(c.output, "samples.jsonl")} == {0, 2, 3}


def test_samples_of_a_string_keep_the_space_at_the_seam(folders: Callable[[str], Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folders("llama"))
    ids, more = (tokenizer.encode(text, add_special_tokens=False) for text in ("Name a colour", " of the sky"))
    episodes, empty = one_episode(Prompt(id="p", text="Name a colour"), ids, more), torch.zeros(1, len(more))
    rollout = Rollout(
        **vars(episodes), scores=torch.tensor([0.5]), ref_logprobs=empty, values=None, rewards=empty, advantages=empty,
        returns=None,
    )  # fmt: skip
    online.keep_samples(Run("online", tmp_path), 4, rollout, tokenizer)
    assert log(tmp_path, "samples.jsonl") == [
        {"iteration": 4, "prompt": "p", "completion": " of the sky", "score": 0.5}
    ]


def test_the_mixtures_rows_are_a_function_of_seed_and_draw(folders: Callable[[str], Path]) -> None:
    policy = load_policy(folders("llama"), load_tokenizer(folders("llama")))
    rows = torch.randint(5, 200, (60, 16), generator=torch.Generator().manual_seed(0))
    losses = []
    for seed, draw in ((3, 7), (3, 7), (3, 8), (4, 7)):
        torch.manual_seed(len(losses))  # what the process has drawn before does not matter
        losses.append(text_backward(policy, draw_rows(rows, 8, seed, draw), 1000))
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_a_reward_model_reads_no_more_than_its_context(
    config: Callable[..., Any], folders: Callable[[str], Path], tmp_path: Path
) -> None:
    own = load_tokenizer(folders("llama"))
    for length in (8, 60):  # GPT-2 has no position beyond its context
        save_model(tiny_model("gpt2", len(own), context=length), own, tmp_path / f"gpt2-{length}")
        save_model(new_scalar(tmp_path / f"gpt2-{length}", own, 0), own, tmp_path / f"reward-{length}")
    sft.run(config("sft", reward_model=tmp_path / "reward-60", max_completion_tokens=100))
    with pytest.raises(ValueError, match=r"reward-8: none of \d+ prompts held out leaves room .* context of 8 tokens"):
        sft.run(config("sft", reward_model=tmp_path / "reward-8", output=tmp_path / "other"))
    own.chat_template = "<system>" + "so " * 100 + (own.chat_template or "")
    save_model(new_scalar(folders("gpt2"), own, 0), own, tmp_path / "talkative")
    with pytest.raises(ValueError, match="leaves room for a completion in the reward model's template"):
        online.run(config("online", reward_model=tmp_path / "talkative", pretraining_texts=None))


def test_the_end_of_a_turn_is_an_end(config: Callable[..., Any], tmp_path: Path) -> None:
    """A policy whose template ends turns with a token of its own stops there in RL, and is not docked for it."""
    own = train_tokenizer(SENTENCES, 318)
    own.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    own.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<turn>\n{% endfor %}assistant: "
    turn = own.convert_tokens_to_ids("<turn>")
    model = tiny_model("llama", len(own))
    policy_folder = tmp_path / "policy"
    with torch.no_grad():  # one channel, always high, makes the end of the turn what it writes, always
        model.model.embed_tokens.weight[:, 0] = 40.0
        model.model.norm.weight.copy_(torch.eye(32)[0])
        model.lm_head.weight.zero_()
        model.lm_head.weight[turn, 0] = 40.0
    model.save_pretrained(policy_folder)
    own.save_pretrained(policy_folder)
    save_model(new_scalar(policy_folder, own, 0), own, tmp_path / "reward")
    prompts = tmp_path / "chat.jsonl"
    write_jsonl(prompts, [{"prompt": [{"role": "user", "content": f"Say {w}."}]} for w in ("a", "b", "c")])
    c = config(
        "online", model=policy_folder, reward_model=tmp_path / "reward", prompts=prompts, total_episodes=16,
        pretraining_texts=None, max_new_tokens=4,
    )  # fmt: skip
    online.run(c)
    (row,) = log(c.output)
    assert (row["objective/ended"], row["objective/length"]) == (1, 1)
    ids = encode_pairs(load_tokenizer(policy_folder), [((Message(role="user", content="Say a."),), "b", True)])
    assert ids[0][1][-1] == turn  # which is what training on text ends with, too


def test_the_first_ratio_is_one(config: Callable[..., Any]) -> None:
    """Before any update the policy is the one that sampled: ratios 1, nothing clipped, at any temperature."""
    c = config("online", total_episodes=16, mini_batch_size=16, inner_epochs=1, temperature=0.7, pretraining_texts=None)
    online.run(c)
    (row,) = log(c.output)
    assert row["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert row["policy/approxkl"] == pytest.approx(0, abs=1e-8)
    assert row["policy/clipfrac"] == 0
    assert row["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert "loss/ptx" not in row


def test_practice_raises_the_score(config: Callable[..., Any]) -> None:
    c = config(
        "online", total_episodes=128 * 16, batch_size=128, mini_batch_size=32, inner_epochs=1, learning_rate=3e-3,
        kl_coef=0.0, kl_target=None, pretraining_texts=None, missing_eos_penalty=0.0, max_new_tokens=2,
    )  # fmt: skip
    online.run(c)
    scores = [row["objective/scores"] for row in log(c.output)]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.5


def test_prompts_are_windows_on_shuffled_passes(config: Callable[..., Any]) -> None:
    c = config("online", batch_size=16)
    prompts: Any = [(i, (i,)) for i in range(24)]
    taken = [online.iteration_prompts(prompts, k, c) for k in range(3)]
    flat = [p for window in taken for p in window]
    assert [len(w) for w in taken] == [16, 16, 16]
    assert sorted(flat[:24]) == sorted(flat[24:]) == prompts
    assert flat[:24] != flat[24:]
    many = online.iteration_prompts(prompts[:5], 0, c)  # fewer prompts than a batch: they come again
    assert {many.count(p) for p in prompts[:5]} == {3, 4}
    other = online.iteration_prompts(prompts, 0, config("online", batch_size=16, seed=4))
    assert other != taken[0] == online.iteration_prompts(prompts, 0, config("online", batch_size=16))


def test_a_reward_model_with_other_tokens_is_refused(
    config: Callable[..., Any], folders: Callable[[str], Path], tmp_path: Path
) -> None:
    other = train_tokenizer(SENTENCES[:2], 300)
    save_model(new_scalar(folders("llama"), other, 0), other, tmp_path / "reward")
    for stage in ("sft", "online"):
        with pytest.raises(ValueError, match=f"reward_model {tmp_path}/reward: its tokenizer differs"):
            STAGES[stage].run(config(stage, reward_model=tmp_path / "reward"))


def test_minibatches_come_in_another_order_each_pass(
    config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each update, of two iterations, two passes and two minibatches, has a draw of text of its own."""
    real, real_draw, asked, drawn = learner.shuffled, learner.draw_rows, [], []

    def shuffled(items: Any, seed: int, epoch: int) -> Any:
        if items == range(16):
            asked.append((seed, epoch))
        return real(items, seed, epoch)

    def draw_rows(rows: torch.Tensor, number: int, seed: int, draw: int) -> torch.Tensor:
        drawn.append((number, seed, draw))
        return real_draw(rows, number, seed, draw)

    monkeypatch.setattr(learner, "shuffled", shuffled)
    monkeypatch.setattr(learner, "draw_rows", draw_rows)
    online.run(config("online", total_episodes=32, ptx_per_episode=1.5))
    assert asked == [(3, 0), (3, 1), (3, 2), (3, 3)]
    first = [0, 8, 1_009, 1_017]
    assert drawn == [(12, 3, draw) for draw in first + [10_007 + draw for draw in first]]


def test_minibatches_divide_batches(config: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="mini_batch_size=5 does not divide batch_size=16"):
        online.run(config("online", mini_batch_size=5))


def test_written_records_are_inputs(data: Path, tmp_path: Path) -> None:
    """Stages meet on disk: what one writes another reads."""
    demonstrations = sft.read_demonstrations(str(data / "demos.jsonl")).records
    write_jsonl(tmp_path / "again.jsonl", demonstrations)
    assert sft.read_demonstrations(str(tmp_path / "again.jsonl")).records == demonstrations


def test_a_reward_model_is_measured_in_full_precision(
    config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where training is in bf16, what is reported is what transformers reads from the folder."""
    monkeypatch.setattr("tutelage.models.precision.trains_in_bf16", lambda _: True)
    c = config("reward")
    reward.run(c)
    model = AutoModelForSequenceClassification.from_pretrained(c.output / "model").eval()
    tokenizer = load_tokenizer(c.output / "model")
    read = sft.read_demonstrations(str(c.demonstrations)).records
    sequences = [p + a for p, a in encode_pairs(tokenizer, [(d.prompt.text, d.completion, True) for d in read])]
    with torch.no_grad():
        scores = [float(model(torch.tensor([ids])).logits) for ids in sequences]
    results = done(c.output)
    assert results is not None
    assert sum(scores) / len(scores) == pytest.approx(results["demonstration_score"], abs=1e-5)
    assert sum(scores) / len(scores) == pytest.approx(0, abs=1e-4)


PLANS = {
    "pretrain": [
        "30 documents give 96 rows of 24 tokens",
        "8 updates of 4 rows: 0.3 passes over the text",
        "a model of 7,024 parameters, 300 tokens in its vocabulary",
    ],
    "sft": [
        "22 demonstrations of up to 47 tokens to train on, 2 of other prompts to measure by",
        "8 updates of 6: 2 epochs of 4",
    ],
    "reward": [
        "24 rankings to train on, 81 ordered pairs; held out: 24 (held_out)",
        "8 updates of 6 rankings, 2 passes",
    ],
    "online": [
        "24 prompts, 2.7 episodes of each",
        "4 iterations of 16 episodes, in each 2 passes of updates of 8",
        "pretraining mixture: 119 rows of 16 tokens",
    ],
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_a_dry_run_says_the_plan_and_writes_nothing(
    stage: str, config: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    c = config(stage, dry_run=True)
    with pytest.raises(DryRun):
        STAGES[stage].run(c)
    *plan, memory = capsys.readouterr().err.splitlines()
    assert plan == [f"{stage}: {line}" for line in PLANS[stage]]
    assert memory == f"{stage}: memory: 0.00 GiB for gradients and optimizer, beside the models and one pass"
    assert not c.output.exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_dry_run_counts_what_is_dropped(
    stage: str, config: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so does the run, before its first step, once."""
    setting = {"pretrain": "texts", "sft": "demonstrations", "reward": "rankings", "online": "prompts"}[stage]
    (source,) = inputs_of(config(stage), setting).values()
    text = source.read_text()
    empty = {"texts": {"text": " "}, "prompts": {"prompt": " "}, "demonstrations": {"prompt": "a", "completion": " "}}
    row = empty.get(setting, {"prompt": " ", "completions": ["a", "b"], "ranks": [1, 2]})
    (tmp_path / "more.jsonl").write_text(text + json.dumps(row) + "\n")
    c = config(stage, **{setting: tmp_path / "more.jsonl"}, dry_run=True)
    with pytest.raises(DryRun):
        STAGES[stage].run(c)
    assert "rows dropped or changed: 1 empty " in capsys.readouterr().err
    if stage == "online":
        (tmp_path / "texts.jsonl").write_text(Path(c.pretraining_texts).read_text() + '{"text": " "}\n')
        with pytest.raises(DryRun):
            online.run(config(stage, pretraining_texts=tmp_path / "texts.jsonl", dry_run=True))
        assert "rows dropped or changed: 1 empty text in pretraining_texts" in capsys.readouterr().err


def test_a_run_that_lost_its_best_epoch_says_so(config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It would end without a model, and call itself done."""
    c = config("sft")
    calls = iter(range(1, 100))

    def update(*arguments: Any) -> float:
        if next(calls) == 7:  # in the second epoch of four steps
            raise KeyboardInterrupt
        return updates.update(*arguments)

    monkeypatch.setattr(sft, "update", update)
    with pytest.raises(KeyboardInterrupt):
        sft.run(c)
    shutil.rmtree(c.output / "model")
    with pytest.raises(ValueError, match="model: is gone, and was the best epoch so far"):
        sft.run(c)
    sft.run(c.model_copy(update={"overwrite": True, "seed": 1}))


def test_free_memory_is_what_all_limits_leave(tmp_path: Path) -> None:
    """The machine has 4,096 bytes; the job may take 3,000, holds 1,000, 400 of them files'; its step has no limit."""
    job = tmp_path / "cgroups" / "job"
    (job / "step").mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:       4 kB\n")
    (tmp_path / "self" / "cgroup").write_text("0::/\n")
    assert updates.free_memory(tmp_path, tmp_path / "cgroups") == 4096
    for folder, limit in ((job, "3000"), (job / "step", "max")):
        for name, content in (("max", limit), ("current", "1000"), ("stat", "anon 600\nfile 400\nkernel 0\n")):
            (folder / f"memory.{name}").write_text(content + "\n")
    (tmp_path / "self" / "cgroup").write_text("0::/job/step\n")
    assert updates.free_memory(tmp_path, tmp_path / "cgroups") == 2400
    assert updates.free_memory(tmp_path / "no", tmp_path) is None


def test_what_does_not_fit_is_seen_before_the_first_step(
    config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients and Adam's two moments of a pretrained model of 7,024 weights: 84,288 bytes; ten times the weights on
    the disk."""
    monkeypatch.setattr(updates, "free_memory", lambda: 84_287)
    with pytest.raises(ValueError, match=r"^pretrain: gradients and optimizer take 0 MiB beside the models"):
        pretrain.run(config("pretrain"))
    monkeypatch.setattr(updates, "free_memory", lambda: 84_288)
    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**6, 10**6 - 280_959, 280_959))
    with pytest.raises(ValueError, match=r"this run writes about 0 MiB, and 0 MiB are free there"):
        pretrain.run(config("pretrain"))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**6, 10**6 - 280_960, 280_960))
    pretrain.run(config("pretrain"))


def test_a_policy_that_has_hardly_moved_is_told_of(config: Callable[..., Any]) -> None:
    c = config("online", learning_rate=1e-9)
    online.run(c)
    *_, warning = results(c.output)["warnings"]
    assert "the policy has hardly moved: its KL from the start is " in warning
    assert warning.endswith("Try a higher optimizer.learning_rate, more total_episodes, or a lower kl_coef")


def test_a_second_judge_scores_the_samples_and_teaches_nothing(
    config: Callable[..., Any], data: Path, tokenizer: PreTrainedTokenizerBase, folders: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    other = tmp_path / "other"
    save_model(new_scalar(folders("llama"), tokenizer, seed=9), tokenizer, other)
    seen: list[Any] = []
    real = online.join
    monkeypatch.setattr(online, "join", lambda rounds: seen.append(real(rounds)) or seen[-1])
    alone, judged = config("online"), config("online", heldout_reward_model=other)
    online.run(alone)
    first = len(seen)
    online.run(judged)
    assert distance(weights(alone.output), weights(judged.output)) == 0
    rows = log(judged.output)
    judge = RewardModel(str(other))
    sampled = [episodes for episodes, _ in seen[first::2]]  # joined once for what is logged, once for what is learned
    for row, plain, episodes in zip(rows, log(alone.output), sampled, strict=True):
        scores = judge.scores(episodes.sequences)
        assert row.pop("objective/heldout_scores") == pytest.approx(float(scores.mean()), abs=1e-5)
        assert row == plain
    final = results(judged.output)["final"]
    assert set(final["last"]) == {"score", "kl", "length", "heldout_score"}
    assert final["last"]["heldout_score"] != final["last"]["score"]


def test_how_far_rankings_reach_is_logged_where_the_reward_model_says_how_many_it_learned_from(
    config: Callable[..., Any],
) -> None:
    """log n − (n − 1)/n of n completions."""
    trained = config("reward")
    reward.run(trained)
    n = results(trained.output)["completions"]
    c = config("online", reward_model=trained.output / "model", total_episodes=32)
    online.run(c)
    expected = math.log(n) - (n - 1) / n
    assert [row["objective/kl_covered"] for row in log(c.output)] == pytest.approx([expected] * 2)
    few = RewardModel(str(trained.output / "model"))
    none = RewardModel(str(config("online").reward_model))
    assert covered_kl([none]) is None
    assert covered_kl([none, few]) == pytest.approx(expected)
