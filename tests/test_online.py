"""Pieces of the online loop by hand: what a run is said to take, which policies it keeps, and what it warns of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from conftest import tiny_model
from tutelage.algorithms import make_algorithm
from tutelage.data.datasets import write_jsonl
from tutelage.models.adapters import add_adapter, own_parameters, scalar_beside
from tutelage.models.loading import load_policy, new_scalar, save_model
from tutelage.runs import DryRun
from tutelage.settings.online import OnlineConfig
from tutelage.settings.training import Lora
from tutelage.stages import online
from tutelage.stages.online_models import load_models

SIMPLE: dict[str, Any] = {"model": "m", "prompts": "p", "output": "o", "reward_model": "r"}


@pytest.fixture
def settings(folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> dict[str, Any]:
    """Three iterations of four episodes."""
    save_model(new_scalar(folders("llama"), tokenizer, 5), tokenizer, tmp_path / "rm")
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": t} for t in ("the cat", "a b c", "moon", "sun", "red")])
    return {
        "model": str(folders("llama")), "reward_model": str(tmp_path / "rm"), "prompts": str(tmp_path / "p.jsonl"),
        "total_episodes": 12, "batch_size": 4, "mini_batch_size": 4, "sampler": {"max_new_tokens": 4},
        "optimizer": {"learning_rate": 1e-2}, "algorithm": {"value_learning_rate": 1e-3},
    }  # fmt: skip


def weights(folder: Path) -> dict[str, Any]:
    return {name: w.tolist() for name, w in load_file(folder / "model.safetensors").items()}


def test_the_policies_of_every_third_iteration_are_kept(settings: dict[str, Any], tmp_path: Path) -> None:
    """As a run that ends there has it."""
    online.run(OnlineConfig(**settings, output=tmp_path / "three"))
    online.run(OnlineConfig(**settings | {"total_episodes": 16}, output=tmp_path / "four", policy_every=3))
    assert [p.name for p in tmp_path.glob("*/policy-*")] == ["policy-00003"]
    kept, last = tmp_path / "four" / "policy-00003", tmp_path / "three" / "last"
    assert weights(kept) == weights(last)
    assert sorted(p.name for p in kept.iterdir()) == sorted(p.name for p in last.iterdir())


@pytest.mark.parametrize(("every", "once"), [(None, 0), (1, 3), (2, 1)])
def test_the_disk_must_hold_checkpoints_the_average_and_the_policies_that_are_kept(
    every: int | None, once: int, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times the weights of policy and value model, four of the average, one of each kept policy; 4 bytes each."""
    policy, value = (
        sum(w.numel() for w in load_file(Path(settings[name]) / "model.safetensors").values())
        for name in ("model", "reward_model")
    )
    needed = 4 * (10 * (policy + value) + 4 * policy + once * policy)
    usage = type(shutil.disk_usage("."))
    config = OnlineConfig(**settings, output=tmp_path / "out", policy_every=every, dry_run=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(2 * needed, needed + 1, needed - 1))
    with pytest.raises(ValueError, match="this run writes about"):
        online.run(config)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(2 * needed, needed, needed))
    with pytest.raises(DryRun):
        online.run(config)


@pytest.mark.parametrize(
    ("most", "new", "remedy"),
    [
        (2, 4, "raise max_prompt_tokens=2"),
        (2, 126, "lower sampler.max_new_tokens=126"),  # raising the other would not help
        (100, 126, "lower sampler.max_new_tokens=126"),
    ],
)
def test_the_remedy_is_the_limit_that_binds(
    most: int, new: int, remedy: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The context is 128 tokens; the prompts have 2 and 3. A prompt keeps its columns, which a reward may ask for."""
    models: Any = SimpleNamespace(policy=tiny_model("llama", len(tokenizer)), tokenizer=tokenizer, readers=[])
    config = OnlineConfig(
        **SIMPLE | {"prompts": str(tmp_path / "p.jsonl")}, max_prompt_tokens=most, sampler={"max_new_tokens": new}
    )
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "qz", "answer": 5}, {"prompt": "qzq"}])
    (((prompt, ids),), lost) = online.usable_prompts(config, models)
    assert (len(ids), prompt.meta, lost) == (2, {"answer": 5}, {"too long": 1})
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "qzq"}])
    with pytest.raises(ValueError, match=f"none of 1 prompts leaves room for a completion: {remedy} \\(the models'"):
        online.usable_prompts(config, models)


def test_warnings_by_hand() -> None:
    held, free = (OnlineConfig(**SIMPLE, kl_coef=beta) for beta in (0.02, 0))

    def of(way: float, config: OnlineConfig, kl: float) -> list[str]:
        return list(online.warnings_of(way, config, 0.98765, 30, kl))

    assert of(0.5, held, 11.0) == of(0.5, held, 0.01) == of(0.5, held, -0.01) == of(0.5, free, 10.0) == []
    assert of(0.499, held, 1.0) == [
        "the averaged weights in model/ have moved only 50% as far from the start as the last weights: with "
        "ema_decay=0.9877 over 30 iterations they are mostly the policy that the run began with. last/ holds the last "
        "weights; a lower ema_decay, or leaving it out, gives an average of this run"
    ]
    unmoved = (
        "the policy has hardly moved: its KL from the start is {} nats a completion. Try a higher "
        "optimizer.learning_rate, more total_episodes, or a lower kl_coef"
    )
    assert of(1.0, held, 0.0099) == of(1.0, free, 0.0099) == [unmoved.format("0.010")]
    assert of(1.0, held, -0.002) == [unmoved.format("-0.002")]
    assert of(1.0, free, 10.04) == [
        "kl_coef=0 holds the policy to nothing, and its KL from the start is 10.0 nats a completion: look whether its "
        "answers still read as language, or set kl_coef"
    ]
    assert len(of(0.1, held, 0.0)) == 2


def test_a_second_judge_passes_over_completions_that_it_cannot_score() -> None:
    judge = SimpleNamespace(score_answers=lambda answers, tokenizer: [1.0, None, 4.0])
    episodes = SimpleNamespace(prompts=[], texts=lambda tokenizer: [], ended=SimpleNamespace(tolist=list), sequences=[])
    assert online.heldout_score(SimpleNamespace(tokenizer=None), judge, episodes) == 2.5  # type: ignore[arg-type]


def test_models_of_one_base_share_it_and_adapters_are_drawn_by_the_seed(
    settings: dict[str, Any], folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A second judge that is an adapter; a value model without a reward model; what is not trained has no gradient."""
    base, lora = folders("llama"), Lora(rank=2)
    judge = scalar_beside(load_policy(base, tokenizer, lora), 1)
    save_model(add_adapter(judge, lora, str(base), 2), tokenizer, tmp_path / "judge")
    config = OnlineConfig(
        **settings | {"reward_model": None}, rewards={"r": "builtins:len"}, adapter=lora, seed=7,
        heldout_reward_model=str(tmp_path / "judge"), output=tmp_path / "out",
    )  # fmt: skip
    models = load_models(config.model_copy(update={"rewards": {}}), make_algorithm(config.algorithm, 4))
    assert models.heldout is not None
    assert models.value_model is not None
    shared = {p.data_ptr() for name, p in models.policy.base_model.named_parameters() if ".lora_" not in name}
    for model in (models.reference, models.average, models.value_model, models.heldout.model):
        assert shared <= {p.data_ptr() for p in model.parameters()}
    for model, drawn in (
        (models.policy, load_policy(base, tokenizer, lora, 7)),
        (models.average, load_policy(base, tokenizer, lora, 7)),
        (models.value_model, add_adapter(new_scalar(base, tokenizer, 7), lora, str(base), 7)),
    ):
        own, expected = own_parameters(model), own_parameters(drawn)
        assert own.keys() == expected.keys()
        assert all(own[name].tolist() == expected[name].tolist() for name in own)
        assert {p.requires_grad for p in own.values()} == {model is not models.average}
    assert not any(p.requires_grad for p in models.reference.parameters())
    assert models.covered == {}  # no reward model says what it learned from
