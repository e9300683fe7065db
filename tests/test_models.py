"""Our forward passes against the models' own, what is saved against the ecosystem's loaders, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
)

from conftest import KINDS, STORIES, tiny_config
from tutelage.data.records import Request
from tutelage.models.architecture import context_length
from tutelage.models.forward import all_scores, completion_logprobs, completion_values
from tutelage.models.loading import load_policy, load_scalar, new_scalar, save_model
from tutelage.models.packing import micro_batches
from tutelage.models.tokens import load_tokenizer
from tutelage.sampling.local import LocalSampler
from tutelage.stages.reward import centre

Tiny = Callable[[str], PreTrainedModel]
Folders = Callable[[str], Path]


def some_sequences(n: int, vocabulary: int, longest: int = 40) -> list[list[int]]:
    rng = Random(n)
    return [[rng.randrange(2, vocabulary) for _ in range(rng.randint(3, longest))] for _ in range(n)]


def padded(sequences: Sequence[Sequence[int]], pad: int) -> dict[str, torch.Tensor]:
    """A batch as any other tool would make it: right-padded, with an attention mask."""
    width = max(map(len, sequences))
    ids = torch.tensor([[*s, *[pad] * (width - len(s))] for s in sequences])
    return {
        "input_ids": ids,
        "attention_mask": torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences]),
    }


# --- forward passes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_are_the_models_own(kind: str, temperature: float, tiny: Tiny) -> None:
    policy = tiny(kind)
    sequences = some_sequences(12, policy.config.vocab_size)
    prompts = [1 + len(s) // 3 for s in sequences]
    ours = completion_logprobs(policy, sequences, prompts, temperature, max_tokens=100)
    for row, ids, p in zip(ours, sequences, prompts, strict=True):
        logits = policy(torch.tensor([ids])).logits[0, :-1]
        theirs = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(ids)[1:, None])[p - 1 :, 0]
        assert_close(row[: len(ids) - p], theirs.detach(), rtol=0, atol=1e-5)
        assert (row[len(ids) - p :] == 0).all()


def test_stories_logprobs_are_the_models_own(stories: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    policy, tokenizer = stories
    ids = tokenizer.encode("Once upon a time, there was a little girl named Lily. She loved to play outside.")
    theirs = policy(torch.tensor([ids])).logits[0, :-1].log_softmax(-1).gather(1, torch.tensor(ids)[1:, None])[:, 0]
    assert_close(completion_logprobs(policy, [ids], [1])[0], theirs.detach(), rtol=0, atol=1e-4)
    assert theirs.mean() > -2  # it has read such stories


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_heads_reading_of_each_state(
    kind: str, folders: Folders, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The value before a token is the score of the text so far."""
    model = new_scalar(folders(kind), tokenizer, seed=1)
    sequence = some_sequences(1, len(tokenizer), 12)[0]
    values = completion_values(model, [sequence], [2])[0]
    prefixes = [sequence[:k] for k in range(2, len(sequence))]
    assert_close(values, all_scores(model, prefixes), rtol=0, atol=1e-5)


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_policy_opens_elsewhere(
    kind: str, tiny: Tiny, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    policy = tiny(kind)
    save_model(policy, tokenizer, tmp_path / "model")
    assert not (tmp_path / "model.tmp").exists()
    assert not list((tmp_path / "model").glob("*.bin"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor(some_sequences(1, len(tokenizer)))
    policy.set_attn_implementation("sdpa")  # as theirs, or the last digits differ
    assert_close(theirs(ids).logits, policy(ids).logits, rtol=0, atol=1e-6)
    assert load_tokenizer(tmp_path / "model").get_vocab() == tokenizer.get_vocab()
    ours = load_policy(tmp_path / "model", load_tokenizer(tmp_path / "model"))
    assert_close(ours(ids).logits, policy(ids).logits, rtol=0, atol=1e-5)
    assert (ours.config.pad_token_id, ours.config.eos_token_id) == (0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_reward_model_scores_the_same_elsewhere(
    kind: str, folders: Folders, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = new_scalar(folders(kind), tokenizer, seed=1)
    sequences = [[*s, tokenizer.eos_token_id] for s in some_sequences(16, len(tokenizer))]
    ours = all_scores(model, sequences, max_tokens=120)
    assert ours.std() > 0.05
    save_model(model, tokenizer, tmp_path / "model")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert theirs.config.num_labels == 1
    with torch.no_grad():
        assert_close(theirs(**padded(sequences, 0)).logits[:, 0], ours, rtol=0, atol=1e-5)
    reopened = load_scalar(tmp_path / "model", load_tokenizer(tmp_path / "model"))
    assert_close(all_scores(reopened, sequences), ours, rtol=0, atol=1e-5)


def test_a_new_head_is_as_wide_as_stiennon_says(folders: Folders, tokenizer: PreTrainedTokenizerBase) -> None:
    heads = torch.cat(
        [new_scalar(folders("llama"), tokenizer, seed).score.weight.detach().flatten() for seed in range(30)]
    )
    assert heads.std().item() == pytest.approx(33**-0.5, rel=0.07)  # 960 draws: three standard errors
    again = new_scalar(folders("llama"), tokenizer, 3).score.weight.flatten()
    assert torch.equal(again, heads[3 * 32 : 4 * 32])


def test_what_is_no_such_model_is_refused(folders: Folders, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a language model; a reward model is wanted: train one with"):
        load_scalar(folders("llama"), tokenizer)
    for load in (load_policy, load_scalar, lambda f, t: new_scalar(f, t, 0)):
        with pytest.raises(ValueError, match=f"{tmp_path}: no .*found here"):
            load(tmp_path, tokenizer)
    with pytest.raises(ValueError, match=f"{tmp_path}: no tokenizer found here"):
        load_tokenizer(tmp_path)


def test_a_broken_weights_file_is_refused(folders: Folders, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    save_model(load_policy(folders("llama"), tokenizer), tokenizer, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for load in (load_policy, load_scalar, lambda f, t: new_scalar(f, t, 0)):
        with pytest.raises(ValueError, match=str(tmp_path / "model")):
            load(tmp_path / "model", tokenizer)


def test_a_tokenizer_too_large_is_refused(
    stories: tuple[PreTrainedModel, PreTrainedTokenizerBase], folders: Folders
) -> None:
    with pytest.raises(ValueError, match="the tokenizer has 512 tokens, the model only 3"):
        load_policy(folders("llama"), stories[1])


def test_pickles_are_not_opened(folders: Folders, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders("llama"))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"{tmp_path}: no causal language model found here"):
        load_policy(tmp_path, tokenizer)


# --- architectures ----------------------------------------------------------------------------------------------------

SMALL = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip


@pytest.mark.parametrize("initializer_range", [0.02, 0.5])  # small weights hide a soft cap in the noise
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Gemma2Config, {"head_dim": 8, "final_logit_softcapping": 5.0}),
        (CohereConfig, {"logit_scale": 0.25}),
        (GraniteConfig, {"logits_scaling": 8.0}),
    ],
)
def test_capped_and_scaled_logits_are_the_models_own(
    kind: Any, settings: dict[str, Any], initializer_range: float, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Log-probabilities, their gradient, and what is sampled, at temperature 0.7."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(kind(**SMALL, **settings, initializer_range=initializer_range)).save_pretrained(
        tmp_path
    )
    policy = load_policy(tmp_path, tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor(some_sequences(1, 320))
    (batch,) = micro_batches(ids.tolist(), 100, 0)
    ours, entropy = policy.token_logprobs(batch, batch.completion_mask([1]), 0.7, with_entropy=True)
    expected = (theirs(ids).logits[0, :-1] / 0.7).log_softmax(-1)
    assert_close(entropy, -(expected.exp() * expected).sum(-1), rtol=0, atol=1e-4)
    expected = expected.gather(1, ids[0, 1:, None])[:, 0]
    assert_close(ours, expected, rtol=0, atol=1e-5)
    ours.sum().backward()
    expected.sum().backward()
    for (name, mine), other in zip(policy.named_parameters(), theirs.parameters(), strict=True):
        scale = float(other.grad.abs().max())
        assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5 * max(1, scale), msg=lambda m, n=name: f"{n}: {m}")
    prompt = ids[:, :5]
    (sample,) = LocalSampler(policy).sample([Request(tuple(prompt[0].tolist()), 0, 8, (), 0.0)])
    generated = theirs.generate(prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False)[0, 5:]
    assert list(sample.completion_ids) == generated.tolist()


def test_logits_changed_in_another_way_are_refused_by_name(
    folders: Folders, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = LlamaForCausalLM.forward

    def forward(self: Any, *args: Any, **options: Any) -> Any:
        out = own(self, *args, **options)
        out.logits = out.logits.clamp(-20, 20)  # nothing is to be seen of it where logits are small
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(ValueError, match=r"llama: LlamaForCausalLM makes its numbers .* does not reproduce"):
        load_policy(folders("llama"), tokenizer)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(**SMALL, max_position_embeddings=300), 300),
        (tiny_config("gpt2", 320, 77), 77),
        (tiny_config("gpt_neox", 320, 99), 99),
        (MistralConfig(**SMALL, max_position_embeddings=300, sliding_window=64), 64),
        (MistralConfig(**SMALL, max_position_embeddings=300, sliding_window=None), 300),
        (Qwen2Config(**SMALL, max_position_embeddings=300, use_sliding_window=False, sliding_window=64), 300),
        (
            Qwen2Config(
                **SMALL, max_position_embeddings=300, use_sliding_window=True, sliding_window=64, max_window_layers=0
            ),
            64,
        ),
    ],
    ids=lambda x: str(getattr(x, "model_type", x)),
)
def test_context_length(config: PreTrainedConfig, expected: int) -> None:
    assert context_length(AutoModelForCausalLM.from_config(config)) == expected


def test_a_window_that_is_not_used_is_no_limit() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, max_position_embeddings=300))
    model.config.sliding_window, model.config.use_sliding_window = 64, False
    assert context_length(model) == 300
    model.config.use_sliding_window = True
    assert context_length(model) == 64


def test_killed_while_saving_the_model_or_the_one_before_is_whole(
    folders: Folders, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder, real = load_policy(folders("llama"), tokenizer), tmp_path / "model", os.replace
    save_model(model, tokenizer, folder)
    for victim in range(3):
        moves = iter(range(victim + 1))

        def replace(source: Path, target: Path, moves: Any = moves, victim: int = victim) -> None:
            if next(moves, victim) == victim:
                raise KeyboardInterrupt
            real(source, target)

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(os, "replace", replace)
            save_model(model, tokenizer, folder)
        if not folder.exists():
            folder.with_name("model.old").rename(folder)
        load_policy(folder, tokenizer)
    assert {p.name for p in tmp_path.iterdir()} == {"model"}


def test_an_added_padding_token_is_the_same_in_every_loading(
    folders: Folders, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """GPT-2's own folder has no padding token; policy and reference must be one model after it is added."""
    save_model(load_policy(folders("gpt2"), tokenizer), tokenizer, tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = tmp_path / "model" / name
        path.write_text(path.read_text().replace('"<|pad|>"', '"<|other|>"'))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<|endoftext|>"}))
    padless = load_tokenizer(tmp_path / "model")
    assert padless.pad_token_id == len(tokenizer)
    first = load_policy(tmp_path / "model", padless)
    torch.manual_seed(123)
    second = load_policy(tmp_path / "model", padless)
    assert first.config.pad_token_id == len(tokenizer) == first.config.vocab_size - 1
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


# --- centring ---------------------------------------------------------------------------------------------------------


def test_centring_makes_demonstrations_average_zero(
    stories: tuple[PreTrainedModel, PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    _, tokenizer = stories
    model = new_scalar(STORIES, tokenizer, seed=0)
    sequences = [[*s, tokenizer.eos_token_id] for s in some_sequences(160, 512, 30)]
    demonstrations, others, unseen = sequences[:40], sequences[40:120], sequences[120:]
    before, before_unseen = all_scores(model, demonstrations), all_scores(model, unseen)
    assert abs(before.mean()) > 0.1
    report = centre(model, demonstrations, others, 2048)
    assert report["offset"] == pytest.approx(before.mean().item(), abs=1e-5)
    assert all_scores(model, demonstrations).mean() == pytest.approx(0, abs=1e-5)
    # Another tool reads the shifted scores, and differences stay what they were but for the fit's residual.
    save_model(model, tokenizer, tmp_path / "model")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        assert theirs(**padded(demonstrations, 0)).logits.mean() == pytest.approx(0, abs=1e-4)
    after = all_scores(model, unseen)
    assert torch.corrcoef(torch.stack([before_unseen, after]))[0, 1] > 0.995
    moved = (after - before_unseen) + report["offset"]
    assert moved.std() < 3 * report["offset_residual"]
