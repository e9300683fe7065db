"""The card against the processor in fp32: see README.md beside this file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen3Config,
)

from tutelage.data.records import Request
from tutelage.models import loading, precision
from tutelage.models.forward import completion_logprobs, group_scores, logprob_sums_by_group
from tutelage.models.loading import load_policy, load_scalar, new_scalar, save_model
from tutelage.models.tokens import load_tokenizer
from tutelage.recipe import BASE
from tutelage.sampling.local import LocalSampler
from tutelage.settings.online import OnlineConfig
from tutelage.settings.reward import RewardConfig
from tutelage.stages import online, reward

CARD = torch.device(os.environ.get("TUTELAGE_TEST_DEVICE", "cuda"))
if CARD.type == "cuda" and not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
PROCESSOR = torch.device("cpu")
ROUNDING = 0.15  # nats that a log-probability may be off in bf16, on models with weights as wide as these
KINDS = ("llama", "qwen3", "gpt2", "gpt_neox", "gemma2")


def config_of(kind: str, vocabulary: int) -> Any:
    common = {"vocab_size": vocabulary, "initializer_range": 0.1, "bos_token_id": None, "eos_token_id": 1}
    shape = {
        "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256,
        "max_position_embeddings": 256,
    }  # fmt: skip
    grouped = {"num_key_value_heads": 2, "head_dim": 32}
    return {
        "llama": lambda: LlamaConfig(**shape, **common, num_key_value_heads=2),
        "qwen3": lambda: Qwen3Config(**shape, **common, **grouped),
        "gpt2": lambda: GPT2Config(n_embd=128, n_layer=2, n_head=4, n_positions=256, **common),
        "gpt_neox": lambda: GPTNeoXConfig(**shape, **common),
        "gemma2": lambda: Gemma2Config(**shape, **common, **grouped, final_logit_softcapping=30.0),
    }[kind]()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A maker of small random policies with the shipped tokenizer, each made once."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer(BASE)

    def folder(kind: str) -> Path:
        if not (root / kind).exists():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config_of(kind, len(tokenizer)))
            model.config.pad_token_id = tokenizer.pad_token_id
            save_model(model, tokenizer, root / kind)
        return root / kind

    return folder


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[torch.device], None]]:
    """Says where models are put from now on; the processor's are in fp32."""
    own = precision.trains_in_bf16

    def put(device: torch.device, bf16: bool = False) -> None:
        monkeypatch.setattr(loading, "device", lambda: device)
        monkeypatch.setattr(precision, "trains_in_bf16", own if bf16 else lambda model: False)
        monkeypatch.setattr("tutelage.sampling.local.trains_in_bf16", own if bf16 else lambda model: False)

    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield put
    torch.backends.cuda.matmul.allow_tf32 = tf32


def some(number: int, vocabulary: int, longest: int = 60) -> list[list[int]]:
    rng = Random(number)
    return [[rng.randrange(2, vocabulary) for _ in range(rng.randint(8, longest))] for _ in range(number)]


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_and_tokens(kind: str, folders: Any, on: Any) -> None:
    tokenizer = load_tokenizer(folders(kind))
    sequences = some(12, len(tokenizer))
    requests = [Request(tuple(s[:8]), seed, 24, (1,), 1.0) for seed, s in enumerate(sequences)]
    greedy = [Request(tuple(s[:8]), seed, 24, (1,), 0.0) for seed, s in enumerate(sequences)]

    def look(device: torch.device, bf16: bool = False) -> tuple[PreTrainedModel, torch.Tensor]:
        on(device, bf16)
        policy = load_policy(folders(kind), tokenizer)
        assert policy.device.type == device.type
        return policy, completion_logprobs(policy, sequences, [3] * len(sequences), 0.7)

    policy, expected = look(PROCESSOR)
    samples = [LocalSampler(policy).sample(each) for each in (requests, greedy)]
    policy, found = look(CARD)
    assert_close(found, expected, rtol=0, atol=1e-3)
    for each, wanted in zip((requests, greedy), samples, strict=True):
        ours = LocalSampler(policy).sample(each)
        same = sum(a.completion_ids == b.completion_ids for a, b in zip(ours, wanted, strict=True))
        assert same >= len(ours) - 1  # a draw beside a boundary may fall to the other side
    policy, found = look(CARD, bf16=True)
    assert_close(found, expected, rtol=0, atol=ROUNDING * (1 + float(expected.abs().max()) / 20))
    (sample,) = LocalSampler(policy, bf16=True).sample(requests[:1])
    again = completion_logprobs(policy, [[*requests[0].prompt_ids, *sample.completion_ids]], [8])[0]
    assert_close(torch.tensor(sample.logprobs), again[: len(sample.logprobs)], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_rankings(kind: str, folders: Any, on: Any) -> None:
    tokenizer = load_tokenizer(folders(kind))
    groups = [[s[:6] + tail for tail in some(4, len(tokenizer), 20)] for s in some(6, len(tokenizer))]
    on(PROCESSOR)
    expected = torch.cat(group_scores(new_scalar(folders(kind), tokenizer, 0), groups))
    for bf16, close in ((False, 1e-3), (True, 0.1 * float(expected.std()) + 0.02)):
        on(CARD, bf16)
        found = torch.cat(group_scores(new_scalar(folders(kind), tokenizer, 0), groups))
        assert_close(found, expected, rtol=0, atol=close)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_of_rankings(kind: str, folders: Any, on: Any) -> None:
    """As trees on the card, as rows on the processor."""
    tokenizer = load_tokenizer(folders(kind))
    groups = [[s[:6] + tail for tail in some(4, len(tokenizer), 20)] for s in some(6, len(tokenizer))]
    on(PROCESSOR)
    policy = load_policy(folders(kind), tokenizer)
    expected = [completion_logprobs(policy, group, [6] * len(group)).sum(1) for group in groups]
    on(CARD)
    policy = load_policy(folders(kind), tokenizer)
    for part in logprob_sums_by_group(policy, groups, [6] * len(groups), 200):
        for g, sums in part:
            assert_close(sums.detach().cpu(), expected[g], rtol=1e-4, atol=1e-3)


def files(folder: Path) -> dict[str, str]:
    """A few prompts, rankings and texts."""
    asked = [[{"role": "user", "content": f"List {n} animals."}] for n in ("two", "three", "four", "five")]
    rows = {
        "prompts": [{"prompt": p} for p in asked * 4],
        "rankings": [{"prompt": p, "completions": ["A dog.", "Cats, dogs.", "No"], "ranks": [2, 1, 3]} for p in asked],
        "texts": [{"text": "Tom has a red ball. Tom likes the ball. " * 8}] * 8,
    }  # fmt: skip
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return {name: str(folder / f"{name}.jsonl") for name in rows}


def one_iteration(
    folder: Path, model: Path, scorer: Path, data: dict[str, str], temperature: float = 1.0, **more: Any
) -> dict[str, float]:
    settings: dict[str, Any] = {
        "model": str(model), "reward_model": str(scorer), "prompts": data["prompts"], "total_episodes": 16,
        "batch_size": 16, "mini_batch_size": 8, "optimizer": {"learning_rate": 1e-4},
        "pretraining_texts": data["texts"], "ptx_coef": 0.5, "ptx_per_episode": 0.25, "ptx_length": 32,
    }  # fmt: skip
    sampler = {"max_new_tokens": 16, "temperature": temperature}
    online.run(OnlineConfig(**(settings | more), sampler=sampler, output=folder))
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_one_reward_step_and_one_iteration_of_ppo_ptx(kind: str, folders: Any, on: Any, tmp_path: Path) -> None:
    data = files(tmp_path)
    rows: dict[str, dict[str, float]] = {}
    for name, device, bf16 in (("processor", PROCESSOR, False), ("card", CARD, False), ("bf16", CARD, True)):
        on(device, bf16)
        where = tmp_path / name
        fit = RewardConfig(
            model=str(folders(kind)), rankings=data["rankings"], valid={"same": data["rankings"]},
            optimizer={"learning_rate": 1e-4}, output=where / "reward",
        )  # fmt: skip
        reward.run(fit)
        rows[name] = json.loads((where / "reward/metrics.jsonl").read_text().splitlines()[0])
        scorer = tmp_path / "processor/reward/model"
        rows[name] |= one_iteration(where / "ppo", folders(kind), scorer, data, temperature=0.7)
    for key in ("loss/train", "objective/scores", "objective/kl", "loss/ptx", "loss/value", "grad_norm"):
        assert rows["card"][key] == pytest.approx(rows["processor"][key], rel=0.02, abs=0.02), key
    for key in ("loss/train", "loss/ptx"):
        assert rows["bf16"][key] == pytest.approx(rows["processor"][key], rel=0.05, abs=0.05), key
    assert rows["bf16"]["val/ratio"] == pytest.approx(1, abs=0.05)


def test_a_resumed_run_is_the_uninterrupted_one(folders: Any, on: Any, tmp_path: Path, monkeypatch: Any) -> None:
    on(CARD, bf16=True)
    data = files(tmp_path)
    tokenizer = load_tokenizer(folders("llama"))
    save_model(new_scalar(folders("llama"), tokenizer, 0), tokenizer, tmp_path / "scorer")
    more = {"total_episodes": 64, "checkpoint_seconds": 1e-9}
    one_iteration(tmp_path / "whole", folders("llama"), tmp_path / "scorer", data, **more)
    real = online.kl_shaped_rewards
    calls = []

    def stop(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(online, "kl_shaped_rewards", stop)
    with pytest.raises(KeyboardInterrupt):
        one_iteration(tmp_path / "cut", folders("llama"), tmp_path / "scorer", data, **more)
    one_iteration(tmp_path / "cut", folders("llama"), tmp_path / "scorer", data, **more)
    whole, cut = (load_policy(tmp_path / name / "model", tokenizer) for name in ("whole", "cut"))
    for (name, a), b in zip(whole.named_parameters(), cut.parameters(), strict=True):
        assert_close(a, b, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert load_scalar(tmp_path / "scorer", tokenizer).device.type == CARD.type
