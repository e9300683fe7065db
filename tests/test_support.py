"""Models of many kinds are read as transformers reads them, or refused by name when they are loaded.

The right numbers are those of transformers' own forward pass of each sequence alone.
"""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from conftest import SENTENCES, tiny_model
from tutelage.data.records import Request
from tutelage.models import memory
from tutelage.models.architecture import context_length, set_dropout, stop_ids, window
from tutelage.models.forward import group_scores, reads_trees, scores_by_group, with_forward
from tutelage.models.loading import load_policy, load_scalar, new_scalar, save_model
from tutelage.models.packing import micro_batches
from tutelage.models.tokens import load_tokenizer
from tutelage.sampling.local import LocalSampler
from tutelage.stages.pretrain import train_tokenizer

Folders = Callable[[str], Path]
DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def support(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("support")


EXPECTED = {
    "bert": "refused: BertLMHeadModel makes its numbers", "bloom": "by rows", "cohere": "policy only",
    "falcon, alibi": "by rows", "granite": "policy only", "jamba": "by rows",
    "mamba": "policy only", "mpt": "by rows",
}  # fmt: skip


def test_architectures(support: ModuleType) -> None:
    """The short form of docs/models.md: log-probabilities, sampling, rankings, training, saving."""
    for name in support.SHORT:
        assert support.look_apart(name).verdict.startswith(EXPECTED.get(name, "same numbers")), name


def test_the_page_says_what_is_seen(support: ModuleType) -> None:
    rows = {
        cells[0].strip(): cells[3].strip()
        for line in (DOCS / "models.md").read_text().splitlines()
        if len(cells := line.strip("|").split("|")) == 4
    }
    assert len(rows) > 150
    assert not any("WRONG" in verdict for verdict in rows.values())
    for name in support.SHORT:
        assert rows[name].startswith(EXPECTED.get(name, "same numbers")), name


# --- trees and caches that do not hold -------------------------------------------------------------------------------


GROUP = [[5, 6, 7, 8, 9, *rest] for rest in ([10, 11], [12, 13, 14, 15], [16])]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_groups_by_rows_are_groups_by_trees(
    kind: str, folders: Folders, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores and gradients, whatever the size of a pass."""
    model = new_scalar(folders(kind), tokenizer, seed=0)
    groups = [GROUP, GROUP[1:], [[3, 4], [3, 5]], GROUP]
    found = {}
    for how in (True, False):
        monkeypatch.setattr("tutelage.models.forward.reads_trees", lambda _, how=how: how)
        for size in (1, 30, 1000):
            model.zero_grad()
            scores = [torch.empty(0)] * len(groups)
            for part in scores_by_group(model, groups, size):
                for g, s in part:
                    scores[g] = s.detach()
                sum((s**2).sum() for _, s in part).backward()
            found[how, size] = torch.cat([*scores, *(p.grad.flatten() for p in model.parameters())])
    assert len(scores[1]) == 2
    for each in found.values():
        assert_close(each, found[True, 1000], rtol=1e-4, atol=1e-5)


def test_a_tree_longer_than_a_window_is_read_by_rows(
    support: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-Neo counts its window in places of the row: 8 here, less than the tree and no less than any sequence."""
    monkeypatch.setitem(support.MORE, "gpt_neo", {**support.MORE["gpt_neo"], "window_size": 8})
    support.build("gpt_neo", tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    model = new_scalar(tmp_path, tokenizer, 0)
    assert (window(model), context_length(model)) == (8, 8)
    model.config.window_size = 256  # as if it were wide enough: the trial, too, is longer than 8
    assert not reads_trees(model)
    expected = torch.cat([model(torch.tensor([ids])).logits[0] for ids in GROUP])
    assert_close(group_scores(model, [GROUP])[0], expected.detach(), rtol=0, atol=1e-5)


def test_reading_anew_samples_what_a_cache_samples(
    folders: Folders, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(folders("gpt2"), tokenizer)
    requests = [Request((5, 6, *range(7, 7 + k % 5)), k, 4 + k % 7, (20, 21)) for k in range(30)]
    expected = LocalSampler(policy, batch_tokens=60).sample(requests)
    monkeypatch.setattr(memory, "remembers", lambda _: False)
    found = LocalSampler(policy, batch_tokens=60).sample(requests)
    assert [s.completion_ids for s in found] == [s.completion_ids for s in expected]
    for a, b in zip(found, expected, strict=True):
        assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), rtol=0, atol=1e-5)


def test_a_step_that_gives_nan_is_no_step(
    folders: Folders, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = memory.Memory.step
    monkeypatch.setattr(memory.Memory, "step", lambda *arguments: real(*arguments) * float("nan"))
    assert not memory.remembers(load_policy(folders("gpt2"), tokenizer))


# --- folders that lack something -------------------------------------------------------------------------------------


def changed(source: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """A copy of a model folder with other weights."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = change(load_file(source / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def scalar_folder(folders: Folders, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    save_model(new_scalar(folders("llama"), tokenizer, 0), tokenizer, tmp_path / "scalar")
    return tmp_path / "scalar"


def test_missing_weights_are_named(
    folders: Folders, scalar_folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    policy = folders("llama")
    less = changed(policy, tmp_path / "less", lambda w: {k: v for k, v in w.items() if "layers.1.mlp" not in k})
    prefixed = changed(policy, tmp_path / "prefixed", lambda w: {f"actor.{k}": v for k, v in w.items()})
    headless = changed(policy, tmp_path / "headless", lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"})
    renamed = changed(scalar_folder, tmp_path / "renamed", lambda w: {k.replace("score", "v"): x for k, x in w.items()})
    with pytest.raises(ValueError, match=r"less: lacks the weight model\.layers\.1\.mlp\.down_proj\.weight and 2 more"):
        load_policy(less, tokenizer)
    with pytest.raises(ValueError, match=r"prefixed: lacks the weight .* and 20 more"):
        load_policy(prefixed, tokenizer)
    with pytest.raises(ValueError, match=r"headless: lacks the weight lm_head\.weight"):
        load_policy(headless, tokenizer)
    for load in (load_scalar, lambda f, t: new_scalar(f, t, 0)):
        with pytest.raises(ValueError, match=r"renamed: lacks the weight score\.weight"):
            load(renamed, tokenizer)
    with pytest.raises(ValueError, match=r"less: lacks the weight model\.layers\.1"):
        new_scalar(less, tokenizer, 0)


def test_weights_that_the_config_knows_nothing_of_are_named(
    folders: Folders, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    more = changed(folders("llama"), tmp_path / "more", lambda w: w | {"model.layers.2.mlp.x": torch.zeros(2)})
    for load in (load_policy, lambda f, t: new_scalar(f, t, 0)):
        with pytest.raises(ValueError, match=r"more: has weights .* nothing of: model\.layers\.2\.mlp\.x"):
            load(more, tokenizer)


def test_a_reward_model_keeps_its_head(scalar_folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Where `reward` goes on from one."""
    first, again = load_scalar(scalar_folder, tokenizer), new_scalar(scalar_folder, tokenizer, seed=5)
    assert torch.equal(first.score.weight, again.score.weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(
    value: float, folders: Folders, scalar_folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["model.norm.weight"][3] = value
        return weights

    with pytest.raises(ValueError, match=r"p: the weight model\.norm\.weight is not finite"):
        load_policy(changed(folders("llama"), tmp_path / "p", spoil), tokenizer)
    with pytest.raises(ValueError, match=r"s: the weight model\.norm\.weight is not finite"):
        load_scalar(changed(scalar_folder, tmp_path / "s", spoil), tokenizer)


def test_any_token_may_be_the_padding(folders: Folders, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Classifiers read the last token that is not padding, also when a model is tried."""
    other = copy.deepcopy(tokenizer)
    other.pad_token = other.convert_ids_to_tokens(7)
    save_model(new_scalar(folders("llama"), other, 0), other, tmp_path / "model")
    assert load_scalar(tmp_path / "model", other).config.pad_token_id == 7


def test_what_is_no_lora_adapter_is_refused(
    folders: Folders, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    folder = changed(folders("llama"), tmp_path / "adapted", lambda w: w)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"adapted: adapter_config\.json names no LoRA adapter with its base"):
        load_policy(folder, tokenizer)


def test_code_of_a_folder_is_not_run(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = changed(folders("llama"), tmp_path / "own", lambda w: w)
    mark = tmp_path / "it ran"
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run it"))
    tokenizer = load_tokenizer(folders("llama"))
    for load in (load_policy, load_scalar, lambda f, t: new_scalar(f, t, 0)):
        with pytest.raises(ValueError, match=str(folder)):
            load(folder, tokenizer)
    assert not mark.exists()


def test_classifiers_that_read_both_ways_are_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
        num_labels=1, pad_token_id=0,
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="RobertaForSequenceClassification has no linear `score` head"):
        load_scalar(tmp_path, tokenizer)


def test_models_that_take_pictures_are_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {**small, "vocab_size": len(tokenizer), "num_key_value_heads": 2, "head_dim": 8}
    config = Gemma3Config(text_config=text, vision_config={**small, "image_size": 28, "patch_size": 14})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: Gemma3ForConditionalGeneration reads more than text"):
        load_policy(tmp_path, tokenizer)


# --- dropout ---------------------------------------------------------------------------------------------------------

RATES = {
    "gpt2": {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}, "opt": {"dropout": 0.1},
    "gpt_neox": {"hidden_dropout": 0.1, "attention_dropout": 0.1}, "llama": {"attention_dropout": 0.1},
    "phi": {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attention_dropout": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("kind", RATES)
def test_no_dropout_but_what_is_asked_for(
    kind: str, support: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(support.MORE, kind, RATES[kind])
    support.build(kind, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    (batch,) = micro_batches([list(range(2, 30))], 100, 0)
    mask = batch.completion_mask([3])

    def noise(policy: PreTrainedModel) -> float:
        one, two = (policy.train().token_logprobs(batch, mask)[0] for _ in range(2))
        return float((one - two).abs().max().detach())

    policy = load_policy(tmp_path, tokenizer)
    assert noise(policy) == 0
    assert noise(with_forward(AutoModelForCausalLM.from_pretrained(tmp_path))) > 0.01  # it is in the config
    assert noise(with_scalar_body(tmp_path, tokenizer)) == 0
    assert set_dropout(policy, 0.2) == (kind != "llama")
    assert (noise(policy) > 0.01) == (kind != "llama")


def with_scalar_body(folder: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A policy with the reward model's body, as dropout shows in any output."""
    policy = load_policy(folder, tokenizer)
    scalar = new_scalar(folder, tokenizer, 0).train()
    setattr(policy, policy.base_model_prefix, scalar.base_model)
    return policy


def test_no_layer_is_left_out(support: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OPT's `layerdrop` is no residual dropout."""
    monkeypatch.setitem(support.MORE, "opt", {"layerdrop": 0.5})
    support.build("opt", tmp_path)
    policy = load_policy(tmp_path, load_tokenizer(tmp_path))
    set_dropout(policy, 0.9)
    calls: list[int] = []
    for layer in policy.model.decoder.layers:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    for _ in range(20):
        policy.train()(torch.tensor([[3, 4]]))
    assert len(calls) == 20 * len(policy.model.decoder.layers)


# --- what ends a text ------------------------------------------------------------------------------------------------


def test_all_declared_ends_stop(tmp_path: Path) -> None:
    """End-of-text, the template's end of a turn and the ids of both configs; not a class's default number."""
    tokenizer = train_tokenizer(SENTENCES, 320)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "<other>", "<third>"]})
    turn, other, third = tokenizer.convert_tokens_to_ids(["<turn>", "<other>", "<third>"])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<turn>\n{% endfor %}"
    model = tiny_model("llama", len(tokenizer))
    model.config.eos_token_id = [1, third]
    model.generation_config.eos_token_id = [2, other]  # 2 is "!": LlamaConfig's default where nobody said anything
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    policy = load_policy(tmp_path / "model", load_tokenizer(tmp_path / "model"))
    assert stop_ids(policy) == (1, turn, third, other)
    save_model(policy, tokenizer, tmp_path / "saved")
    saved = json.loads((tmp_path / "saved/generation_config.json").read_text())
    assert saved["eos_token_id"] == [1, turn, third, other]
    assert AutoConfig.from_pretrained(tmp_path / "saved").eos_token_id == 1
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == tokenizer.chat_template
