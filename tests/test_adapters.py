"""LoRA: a new adapter changes nothing, an old one opens in PEFT, and models beside one base share its weights."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from byhand import assert_run_of
from conftest import tiny_model
from tutelage.algorithms import make_algorithm
from tutelage.data.datasets import write_jsonl
from tutelage.data.records import Request
from tutelage.files import fingerprint
from tutelage.models.adapters import (
    adapter_of,
    add_adapter,
    beside,
    initialise_head,
    load_adapter,
    own_parameters,
    scalar_beside,
    without_adapter,
)  # fmt: skip
from tutelage.models.architecture import set_dropout
from tutelage.models.cpu import llama
from tutelage.models.forward import all_scores, completion_logprobs
from tutelage.models.frozen import FrozenLinear, freeze
from tutelage.models.loading import load_policy, load_scalar, new_scalar, save_model
from tutelage.models.tokens import load_tokenizer
from tutelage.runs import DryRun, done
from tutelage.sampling.local import LocalSampler
from tutelage.settings.dpo import DpoConfig
from tutelage.settings.merge import MergeConfig
from tutelage.settings.online import OnlineConfig
from tutelage.settings.reward import RewardConfig
from tutelage.settings.sft import SftConfig
from tutelage.settings.training import Lora
from tutelage.stages import dpo, merge, online, reward, sft

KINDS = ("llama", "qwen3", "gpt2", "gpt_neox")
IDS = [[5, 9, 33, 7, 60], [8, 3, 71], [44, 45, 46, 47, 48, 49, 50]]
LORA = Lora(rank=3, alpha=6)


def logprobs(model: Any) -> torch.Tensor:
    return completion_logprobs(model, IDS, [1, 1, 2])


def stir(model: nn.Module, seed: int = 3) -> None:
    """Give a model's own weights other values, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in own_parameters(model).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_begins_as_nothing_and_adds_its_product(
    kind: str, folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    plain = load_policy(folders(kind), tokenizer)
    model = load_policy(folders(kind), tokenizer, LORA, seed=1)
    assert torch.equal(logprobs(model), logprobs(plain))  # exactly
    assert all(p.requires_grad == (".lora_" in name) for name, p in model.named_parameters())
    before = logprobs(without_adapter(model))
    stir(model)
    assert (logprobs(model) - before).abs().max() > 1e-3
    assert torch.equal(logprobs(without_adapter(model)), logprobs(plain))
    # By hand: the weight plus alpha / rank times the product.
    own = dict(own_parameters(model))
    weights = dict(plain.named_parameters())
    with torch.no_grad():
        for name in [n for n in own if ".lora_A." in n]:
            product = 2.0 * own[name.replace("lora_A", "lora_B")] @ own[name]
            weight = weights[name.replace(".lora_A.default", "")]
            weight.add_(product.T if kind == "gpt2" else product)
    assert_close(logprobs(plain), logprobs(model), atol=2e-5, rtol=1e-4)


def test_the_fast_path_takes_adapters(folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase) -> None:
    model = load_policy(folders("llama"), tokenizer, LORA)
    stir(model)
    if not llama.supports(load_policy(folders("llama"), tokenizer)):
        pytest.skip("no kernels here")
    assert llama.supports(model)
    fast = logprobs(model)
    handle = model.base_model.register_forward_hook(lambda *_: None)  # a hook sends it through transformers' own
    assert not llama.supports(model)
    assert_close(logprobs(model), fast, atol=2e-5, rtol=1e-4)
    handle.remove()


def test_samples_are_those_of_the_merged_model(
    folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = load_policy(folders("llama"), tokenizer, LORA)
    stir(model)
    save_model(model, tokenizer, tmp_path / "a")
    requests = [Request(tuple(ids), seed, 12, (1,)) for seed, ids in enumerate(IDS)]
    ours, merged = (
        LocalSampler(m, bf16=True).sample(requests) for m in (model, load_policy(tmp_path / "a", tokenizer))
    )
    assert [s.completion_ids for s in ours] == [s.completion_ids for s in merged]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_opens_in_peft(
    kind: str, folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = load_policy(folders(kind), tokenizer, LORA)
    stir(model)
    save_model(model, tokenizer, tmp_path / "policy")
    assert {p.name for p in (tmp_path / "policy").glob("*.safetensors")} == {"adapter_model.safetensors"}
    ids = torch.tensor([IDS[2]])
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders(kind)), tmp_path / "policy").eval()
    assert_close(theirs(input_ids=ids).logits, model(input_ids=ids).logits, atol=2e-5, rtol=1e-4)
    for again in (load_policy(tmp_path / "policy", tokenizer), load_policy(tmp_path / "policy", tokenizer, LORA)):
        assert_close(logprobs(again), logprobs(model), atol=2e-5, rtol=1e-4)
    scalar = new_scalar(folders(kind), tokenizer, 2, LORA)
    stir(scalar)
    save_model(scalar, tokenizer, tmp_path / "reward")
    base = AutoModelForSequenceClassification.from_pretrained(folders(kind), num_labels=1)
    base.config.pad_token_id = 0
    theirs = PeftModel.from_pretrained(base, tmp_path / "reward").eval()
    expected = all_scores(scalar, IDS)
    assert_close(theirs(input_ids=ids).logits[0, 0], expected[2], atol=2e-5, rtol=1e-4)
    assert_close(all_scores(load_scalar(tmp_path / "reward", tokenizer), IDS), expected, atol=2e-5, rtol=1e-4)
    policy = load_policy(folders(kind), tokenizer, LORA)
    shared = load_scalar(tmp_path / "reward", tokenizer, policy)
    assert_close(all_scores(shared, IDS), expected, atol=2e-5, rtol=1e-4)
    names = set(own_parameters(shared))
    ours = dict(policy.named_parameters())
    for name, p in shared.named_parameters():  # the very same memory
        assert (name in names) or p is ours[name]


def test_copies_share_the_base_and_nothing_of_the_adapter(
    folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = load_policy(folders("llama"), tokenizer, LORA)
    twin, scalar = beside(model), add_adapter(scalar_beside(model, 0), LORA, "x", 0)
    frozen = dict(model.named_parameters())
    own = set(own_parameters(model))
    assert all((p is frozen[name]) != (name in own) for name, p in twin.named_parameters())
    before = logprobs(twin)
    stir(model)
    assert torch.equal(logprobs(twin), before)
    scores = all_scores(scalar, IDS)
    stir(model)
    assert torch.equal(all_scores(scalar, IDS), scores)
    expected = new_scalar(folders("llama"), tokenizer, 0)
    assert_close(scores, all_scores(expected, IDS), atol=1e-5, rtol=1e-5)


def test_dropout_of_the_model_is_not_the_adapters(
    folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = load_policy(folders("gpt2"), tokenizer, Lora(rank=2, dropout=0.25))
    assert set_dropout(model, 0.1)
    rates = {("lora" in name, m.p) for name, m in model.named_modules() if isinstance(m, nn.Dropout)}
    assert (True, 0.25) in rates
    assert not {(True, 0.1), (True, 0.0)} & rates


def test_how_far_an_average_moved_leaves_out_what_was_drawn(
    folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    last = load_policy(folders("llama"), tokenizer, LORA)
    start, average = without_adapter(last), beside(last)
    stir(last)
    assert online.moved(average, last, start) == 0
    online.move(average, last, 0.25)
    assert online.moved(average, last, start) == pytest.approx(0.25)


TARGETS = {
    "q_prj": "no linear layer is called 'q_prj'; did you mean 'q_proj'",
    "lm_head": "lm_head is the output head, whose weight is read as it is",
    "score": "score is the output head",
    "embed_tokens": "no linear layer is called 'embed_tokens'; known: down_proj",
}


@pytest.mark.parametrize("target", TARGETS)
def test_targets_that_are_none_are_named(
    target: str, folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ValueError, match=f"adapter.targets: {TARGETS[target]}"):
        load_policy(folders("llama"), tokenizer, Lora(targets=["v_proj", target]))


def test_targets_are_those_that_are_named(folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase) -> None:
    model = load_policy(folders("llama"), tokenizer, Lora(rank=2, targets=["q_proj", "up_proj"]))
    assert {n.split(".lora_")[0].split(".")[-1] for n in own_parameters(model)} == {"q_proj", "up_proj"}


@pytest.fixture
def adapted(folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """An adapter of a base of its own."""
    shutil.copytree(folders("llama"), tmp_path / "base")
    model = load_policy(tmp_path / "base", tokenizer, LORA)
    stir(model)
    save_model(model, tokenizer, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_what_a_folder_says_of_its_adapter(
    adapted: Path, folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """As PEFT's own tools write and read it."""
    base = adapted.parent / "base"
    config = json.loads((adapted / "adapter_config.json").read_text())
    every = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    expected = {
        "peft_type": "LORA", "base_model_name_or_path": str(base), "task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 6,
        "lora_dropout": 0.0, "inference_mode": True, "modules_to_save": None, "fan_in_fan_out": False, "bias": "none",
    }  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    assert sorted(config["target_modules"]) == every
    assert json.loads((adapted / "base.json").read_text()) == {"base": str(base), "sha256": fingerprint(base)}
    names = set(load_file(adapted / "adapter_model.safetensors"))
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert len(names) == 2 * 2 * len(every)  # two layers, and two matrices of each
    merged = load_policy(adapted, tokenizer)
    assert set(own_parameters(merged)) == {name for name, _ in merged.named_parameters()}  # to be trained whole
    assert all(p.requires_grad for p in merged.parameters())
    again = load_policy(adapted, tokenizer, LORA)
    bases = [m for name, m in again.named_modules() if name.endswith("base_layer")]
    assert len(bases) == 2 * len(every)
    assert {type(m) for m in bases} == {FrozenLinear}
    adapter = adapter_of(again)
    assert adapter is not None
    assert (adapter.base, adapter.sha256) == (str(base), fingerprint(base))
    assert all(p.requires_grad == (name in own_parameters(again)) for name, p in again.named_parameters())
    scalar = new_scalar(folders("gpt2"), tokenizer, 2, Lora(rank=2, alpha=5, dropout=0.25, targets=["c_attn"]))
    save_model(scalar, tokenizer, tmp_path / "scalar")
    config = json.loads((tmp_path / "scalar" / "adapter_config.json").read_text())
    expected |= {
        "base_model_name_or_path": str(folders("gpt2")), "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 5,
        "lora_dropout": 0.25, "modules_to_save": ["score"], "fan_in_fan_out": True,
    }  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    assert config["target_modules"] == ["c_attn"]
    assert "base_model.model.score.weight" in load_file(tmp_path / "scalar" / "adapter_model.safetensors")
    assert scalar.score.weight.requires_grad


def test_a_policys_adapter_becomes_a_reward_models(
    adapted: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    scalar = new_scalar(adapted, tokenizer, 2, LORA)
    save_model(scalar, tokenizer, tmp_path / "scalar")
    config = json.loads((tmp_path / "scalar" / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
    assert_close(all_scores(load_scalar(tmp_path / "scalar", tokenizer), IDS), all_scores(scalar, IDS))
    matrices = own_parameters(load_policy(adapted, tokenizer, LORA))
    assert all(torch.equal(own_parameters(scalar)[name], p) for name, p in matrices.items())


def test_weights_that_are_trained_whole_are_read_into_the_merged_model(
    adapted: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path, name = adapted / "adapter_model.safetensors", "model.embed_tokens.weight"
    before = dict(load_policy(adapted, tokenizer).named_parameters())
    save_file(load_file(path) | {f"base_model.model.{name}": 2 * before[name].detach()}, path)
    after = dict(load_policy(adapted, tokenizer).named_parameters())
    assert torch.equal(after[name], 2 * before[name])
    assert all(torch.equal(p, before[other]) for other, p in after.items() if other not in (name, "lm_head.weight"))


def test_a_base_of_the_hub_has_no_sha256(adapted: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path, base = adapted / "adapter_config.json", adapted.parent / "base"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "someone/model"}))
    (adapted / "base.json").unlink()  # else it would say that a folder is gone
    old = load_adapter(load_policy(base, tokenizer), adapted)
    new = add_adapter(load_policy(base, tokenizer), LORA, "someone/model", 0)
    for model in (old, new):
        adapter = adapter_of(model)
        assert adapter is not None
        assert (adapter.base, adapter.sha256) == ("someone/model", None)


def test_a_new_adapter_is_a_function_of_its_seed(
    folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    """And of nothing else; other random numbers are not moved by it."""
    plain = [load_policy(folders("llama"), tokenizer) for _ in range(3)]
    before = torch.random.get_rng_state()
    adapted = [add_adapter(model, LORA, "x", seed) for model, seed in zip(plain, (1, 1, 2), strict=True)]
    assert torch.equal(before, torch.random.get_rng_state())
    one, same, other = map(own_parameters, adapted)
    for name, p in one.items():
        assert torch.equal(p, same[name])
        assert torch.equal(p, other[name]) == (".lora_B." in name)  # those are 0


def test_a_new_head_by_hand(folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase) -> None:
    """Normal, of variance 1 / (d + 1), here with d = 32; a bias is 0."""
    policy = load_policy(folders("llama"), tokenizer)
    scalar = scalar_beside(policy, 4)
    expected = torch.randn(1, 32, generator=torch.Generator().manual_seed(4)) / 33**0.5
    assert_close(scalar.score.weight.detach(), expected)
    assert policy.config.num_labels != scalar.config.num_labels == 1
    assert scalar.config._attn_implementation == policy.config._attn_implementation
    assert not scalar.training
    assert {name: p for name, p in scalar.named_parameters() if p is not dict(policy.named_parameters()).get(name)} == {
        "score.weight": scalar.score.weight
    }
    head = SimpleNamespace(score=nn.Linear(32, 1))
    initialise_head(head, 4)  # type: ignore[arg-type]
    assert_close(head.score.weight.detach(), expected)
    assert head.score.bias.tolist() == [0]


@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_layer_computes_what_it_did(bias: bool) -> None:
    """In bf16 as in fp32, and with the same gradient in its input; the weight gets none."""
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4, bias=bias), torch.randn(3, 6, requires_grad=True)
    layer.requires_grad_(False)
    frozen, weights = copy.deepcopy(layer), torch.randn(3, 4)
    freeze(frozen)
    assert type(frozen) is FrozenLinear
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            ours, theirs = frozen(x), layer(x)
            assert ours.dtype == theirs.dtype == (torch.bfloat16 if mixed else torch.float32)
            assert_close(ours, theirs)
        gradients = [torch.autograd.grad((y.float() * weights).sum(), x)[0] for y in (ours, theirs)]
        assert_close(*gradients)
    with torch.autocast("cpu", torch.bfloat16):  # the weight itself is kept for the backward pass, not a copy
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            frozen(x)
    assert [t.data_ptr() for t in kept if t.shape == (4, 6)] == [frozen.weight.data_ptr()]
    frozen.requires_grad_(True)
    frozen(x).sum().backward()
    assert_close(frozen.weight.grad, x.detach().sum(0).expand(4, 6))
    special = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    kind = type(special)
    freeze(special)
    assert type(special) is kind


def test_an_adapter_with_other_settings_or_other_weights_is_refused(
    adapted: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ValueError, match=r"adapter with alpha=6, but adapter.alpha=7; set it to the same"):
        load_policy(adapted, tokenizer, Lora(rank=3, alpha=7))


def test_adapters_of_another_base_are_refused(
    adapted: Path, folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    base = adapted.parent / "base"
    weights = load_file(base / "model.safetensors")
    changed = {name: w + (0.01 if "q_proj" in name else 0) for name, w in weights.items()}
    save_file(changed, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"adapter: is an adapter of another base: .* has changed since it was trained"
    ):
        load_policy(adapted, tokenizer)
    config = json.loads((adapted / "adapter_config.json").read_text())
    base.rename(adapted.parent / "elsewhere")  # and is not looked for on the hub
    with pytest.raises(ValueError, match=r"adapter: its base was the folder .*base, which is not here"):
        load_policy(adapted, tokenizer)
    (adapted / "base.json").unlink()
    for other, fault in ((folders("gpt2"), "cannot be read"), (folders("gpt_neox"), "cannot be read")):
        (adapted / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(other)}))
        with pytest.raises(ValueError, match=fault):
            load_policy(adapted, tokenizer)
    (adapted / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(folders("qwen3"))})
    )
    load_policy(adapted, tokenizer)  # of the same shapes: without a note nobody can tell
    for kind, fault in (
        ({"peft_type": "IA3"}, "names no LoRA adapter"),
        ({"base_model_name_or_path": str(adapted)}, "is an adapter itself"),
    ):
        (adapted / "adapter_config.json").write_text(json.dumps(config | kind))
        with pytest.raises(ValueError, match=fault):
            load_policy(adapted, tokenizer)
    (adapted / "adapter_config.json").write_text(json.dumps([config]))
    with pytest.raises(ValueError, match="names no LoRA adapter"):
        load_policy(adapted, tokenizer)


def test_damaged_and_unlike_adapters_are_named(adapted: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=r"is an adapter with rank=3, but adapter.rank=4; set it to the same"):
        load_policy(adapted, tokenizer, Lora(rank=4, alpha=6))
    with pytest.raises(
        ValueError, match=r"is an adapter with targets=\['down_proj', .*but adapter.targets=\['q_proj'\]"
    ):
        load_policy(adapted, tokenizer, Lora(rank=3, alpha=6, targets=["q_proj"]))
    with pytest.raises(ValueError, match="is a language model; a reward model is wanted"):
        load_scalar(adapted, tokenizer)
    path = adapted / "adapter_model.safetensors"
    weights = load_file(path)
    first = min(weights)
    save_file({n: w for n, w in weights.items() if n != first}, path)
    own = first.removeprefix("base_model.model.")
    with pytest.raises(ValueError, match=f"this adapter lacks the weight {own};"):
        load_policy(adapted, tokenizer)
    for wrong in ({first: weights[first].T.contiguous()}, {"base_model.model.no.such.weight": torch.ones(2)}):
        save_file(weights | wrong, path)
        name = next(iter(wrong)).removeprefix("base_model.model.")
        with pytest.raises(ValueError, match=f"is an adapter of another base: .* has no weight {name} of its shape"):
            load_policy(adapted, tokenizer)
    save_file(weights | {first: weights[first] * torch.nan}, path)
    with pytest.raises(ValueError, match="is not finite"):
        load_policy(adapted, tokenizer)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="this adapter cannot be read"):
        load_policy(adapted, tokenizer)


OTHERS = {  # what other tools' adapters hold, and whether their base's embedding is its output head
    "embedding-saved": ({"modules_to_save": ["embed_tokens"]}, True, "changes the embedding, whose weight is"),
    "embedding-lora": ({"target_modules": ["embed_tokens"]}, True, "changes the embedding, whose weight is"),
    "embedding-rows": ({"trainable_token_indices": [5]}, True, "changes the embedding, whose weight is"),
    "dora": ({"use_dora": True}, False, "is a DoRA adapter"),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("kind", OTHERS)
def test_adapters_that_cannot_be_merged_are_refused(
    kind: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    settings, tied, fault = OTHERS[kind]
    base = tiny_model("llama", len(tokenizer))
    base.config.tie_word_embeddings = tied
    base.tie_weights()
    save_model(base, tokenizer, tmp_path / "base")
    config = LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": ["q_proj"]} | settings)
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
    theirs.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=fault):
        load_policy(tmp_path / "adapter", tokenizer)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own
def test_an_adapter_with_weights_of_its_base_is_merged_but_never_shared(
    folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], modules_to_save=["score", "embed_tokens"])
    base = AutoModelForSequenceClassification.from_pretrained(folders("llama"), num_labels=1)
    theirs = get_peft_model(base, config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * parameter.requires_grad)
    theirs.save_pretrained(tmp_path)
    base.config.pad_token_id = 0
    expected = theirs.eval()(input_ids=torch.tensor([IDS[2]])).logits[0, 0]
    assert_close(all_scores(load_scalar(tmp_path, tokenizer), IDS)[2], expected, atol=1e-4, rtol=1e-4)
    policy = load_policy(folders("llama"), tokenizer, LORA)
    before = logprobs(policy)
    for load in (lambda: load_scalar(tmp_path, tokenizer, policy), lambda: new_scalar(tmp_path, tokenizer, 0, LORA)):
        with pytest.raises(ValueError, match=r"holds model.embed_tokens.weight beside LoRA's matrices"):
            load()
    assert torch.equal(logprobs(policy), before)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file({n: w for n, w in weights.items() if "score" not in n}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"lacks the weight score.weight"):  # a head must not be drawn at random
        load_scalar(tmp_path, tokenizer)


@pytest.fixture
def files(folders: Callable[[str], Path], tmp_path: Path) -> dict[str, str]:
    """Demonstrations, rankings and prompts."""
    texts = ["the cat", "a b c", "moon", "sun", "red", "one two", "the sea", "a house"]
    write_jsonl(tmp_path / "d.jsonl", [{"prompt": t, "completion": t[::-1]} for t in texts])
    write_jsonl(
        tmp_path / "r.jsonl", [{"prompt": t, "completions": [t[::-1], t, "x"], "ranks": [1, 2, 3]} for t in texts]
    )
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": t} for t in texts])
    return {name: str(tmp_path / f"{name}.jsonl") for name in "drp"}


def test_all_three_stages_train_adapters_of_one_base(
    files: dict[str, str], folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    base = str(folders("llama"))
    before = (folders("llama") / "model.safetensors").read_bytes()
    often = {"adapter": LORA, "optimizer": {"learning_rate": 1e-2}, "batch_size": 4}
    sft.run(SftConfig(**often, model=base, demonstrations=files["d"], epochs=1, output=tmp_path / "sft"))
    policy = str(tmp_path / "sft" / "model")
    reward.run(
        RewardConfig(**often, model=policy, rankings=files["r"], demonstrations=files["d"], output=tmp_path / "rm")
    )
    dpo.run(DpoConfig(**often, model=policy, rankings=files["r"], output=tmp_path / "dpo"))
    config = OnlineConfig(
        **often | {"batch_size": 8}, model=policy, reward_model=str(tmp_path / "rm" / "model"), prompts=files["p"],
        total_episodes=24, mini_batch_size=8, sampler={"max_new_tokens": 6}, output=tmp_path / "ppo",
        algorithm={"value_learning_rate": 1e-2}, checkpoint_seconds=1e-9,
    )  # fmt: skip
    models = online.load_models(config, make_algorithm(config.algorithm, 8))
    every = (
        models.policy,
        models.reference,
        models.average,
        models.value_model,
        models.rewards.models["reward_model"].model,
    )
    distinct = {p.data_ptr(): p.numel() for m in every for p in m.parameters()}
    alone, one = (
        sum(p.numel() for p in m)
        for m in (load_policy(base, tokenizer).parameters(), own_parameters(every[0]).values())
    )
    assert sum(distinct.values()) <= alone + 5 * (one + 33)  # one base, five adapters, two of them with a head
    assert torch.equal(logprobs(models.reference), logprobs(load_policy(policy, tokenizer, LORA)))
    value, rewarding = models.value_model, models.rewards.models["reward_model"].model
    assert value is not None
    own = own_parameters(value)
    assert own.keys() == own_parameters(rewarding).keys()
    assert all(p.requires_grad for p in own.values())
    assert torch.equal(all_scores(value, IDS), all_scores(rewarding, IDS))
    stir(value)
    assert not torch.equal(all_scores(value, IDS), all_scores(rewarding, IDS))  # a copy, which learns alone
    online.run(config)
    assert (folders("llama") / "model.safetensors").read_bytes() == before
    for name in ("sft", "rm", "dpo", "ppo"):
        folder = tmp_path / name / "model"
        assert not (folder / "model.safetensors").exists()
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    loss = done(tmp_path / "dpo") or {}
    first = json.loads((tmp_path / "dpo" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss/train"] == pytest.approx(0.6931472, abs=1e-6)  # the reference is the policy as it was
    assert loss["rankings"] > 0
    start, end = (load_file(tmp_path / name / "model" / "adapter_model.safetensors") for name in ("sft", "ppo"))
    assert start.keys() == end.keys()
    assert all((start[name] != end[name]).any() for name in start)
    assert 0 < (done(tmp_path / "ppo") or {})["average_moved"] <= 1
    merge.run(MergeConfig(model=str(tmp_path / "ppo" / "model"), output=tmp_path / "merged"))
    plain = load_policy(tmp_path / "merged" / "model", load_tokenizer(tmp_path / "merged" / "model"))
    assert_close(
        logprobs(plain), logprobs(load_policy(tmp_path / "ppo" / "model", tokenizer, LORA)), atol=2e-5, rtol=1e-4
    )
    merge.run(MergeConfig(model=str(tmp_path / "rm" / "model"), output=tmp_path / "merged-rm"))
    scores = [all_scores(load_scalar(tmp_path / name / "model", tokenizer), IDS) for name in ("rm", "merged-rm")]
    assert_close(*scores)
    with pytest.raises(ValueError, match="holds no adapter, so there is nothing to merge"):
        merge.run(MergeConfig(model=base, output=tmp_path / "no"))


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("reward_model", [True, False])
def test_a_value_model_starts_as_the_reward_model_or_the_policy(
    reward_model: bool, adapted: bool, files: dict[str, str], folders: Callable[[str], Path],
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path,
) -> None:  # fmt: skip
    """With an adapter, on a plain base or from an adapter; the reward model is whole."""
    save_model(new_scalar(folders("llama"), tokenizer, 5), tokenizer, tmp_path / "rm")
    source = {"reward_model": str(tmp_path / "rm")} if reward_model else {"rewards": {"r": "builtins:len"}}
    policy = folders("llama")
    if adapted:
        model = load_policy(policy, tokenizer, LORA)
        stir(model)
        save_model(model, tokenizer, tmp_path / "sft")
        policy = tmp_path / "sft"
    config = OnlineConfig(
        **source, adapter=LORA, model=str(policy), prompts=files["p"], seed=7, output=tmp_path / "ppo"
    )
    if not reward_model:
        config = config.model_copy(update={"rewards": {}})
    algorithm = make_algorithm(config.algorithm, config.batch_size)
    models = online.load_models(config, algorithm)
    expected = load_scalar(tmp_path / "rm", tokenizer) if reward_model else new_scalar(policy, tokenizer, 7)
    assert models.value_model is not None
    assert_close(all_scores(models.value_model, IDS), all_scores(expected, IDS), atol=1e-5, rtol=1e-5)
    own = own_parameters(models.value_model)
    assert all(p.requires_grad for p in own.values())
    assert {n for n in own if not n.startswith("score.")} == set(own_parameters(models.policy))
    if reward_model:
        scores = all_scores(models.rewards.models["reward_model"].model, IDS)
        stir(models.value_model)
        assert torch.equal(all_scores(models.rewards.models["reward_model"].model, IDS), scores)


def test_merging_is_a_run_that_is_done_once(
    adapted: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    config = MergeConfig(model=str(adapted), output=out)
    with pytest.raises(DryRun):
        merge.run(config.model_copy(update={"dry_run": True}))
    assert capsys.readouterr().err == f"merge: {adapted} into {adapted.parent / 'base'}\n"
    assert not out.exists()
    merge.run(config)
    assert_run_of(out, "merge", "model")
    weights = out / "model" / "model.safetensors"
    once = weights.stat()
    merge.run(config)
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == (once.st_ino, once.st_mtime_ns)
    assert load_tokenizer(out / "model").get_vocab() == tokenizer.get_vocab()


def test_folders_that_people_mix_up_are_named(adapted: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    run = adapted.parent / "run"
    shutil.copytree(adapted, run / "model")
    with pytest.raises(ValueError, match=r"run: is a run folder; its model is .*run/model"):
        merge.run(MergeConfig(model=str(run), output=adapted.parent / "out"))
    modes = {path.stat().st_mode & 0o777 for path in adapted.iterdir()}
    assert modes == {(adapted.parent / "base" / "config.json").stat().st_mode & 0o777}
    labels = AutoModelForSequenceClassification.from_pretrained(adapted.parent / "base", num_labels=3)
    labels.save_pretrained(adapted.parent / "labels")
    with pytest.raises(ValueError, match=r"labels: its head has another shape than a reward model's; if it is a class"):
        load_scalar(adapted.parent / "labels", tokenizer)
