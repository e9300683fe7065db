"""What tests of whole updates share: a vocabulary of twelve, models of one layer, and the steps an optimizer took.

The formulas here are the paper's, written out in plain torch around transformers' own forward pass. Nothing of
`tutelage` is called, so that a mistake there cannot cancel itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

WORDS = ["<pad>", "<end>", *"abcdefghij"]
END = 1
WIDTH, CONTEXT = 8, 16
KINDS = ("llama", "gpt2")


class Interruption(Exception):
    """What ends a run in the middle. (KeyboardInterrupt would end pytest as well, where a test does not expect it.)"""


def ids(text: str) -> list[int]:
    """`ids("a b <end>")` is [2, 3, 1]."""
    return [WORDS.index(word) for word in text.split()]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")


def shape(kind: str, dropout: float = 0.0, context: int = CONTEXT) -> PreTrainedConfig:
    common = {"vocab_size": len(WORDS), "initializer_range": 0.4, "pad_token_id": 0, "eos_token_id": END}
    if kind == "gpt2":
        drop = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
        return GPT2Config(n_embd=WIDTH, n_layer=1, n_head=2, n_positions=context, bos_token_id=None, **common, **drop)
    size = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    return LlamaConfig(max_position_embeddings=context, bos_token_id=None, **common, **size)


def make(kind: str, folder: Path, *, scalar: bool = False, dropout: float = 0.0, context: int = CONTEXT) -> Path:
    """A folder with a random policy, or with a random reward model, and the tokenizer."""
    torch.manual_seed(5 if scalar else 4)
    config = shape(kind, dropout, context)
    if scalar:
        config.num_labels = 1
    model = (AutoModelForSequenceClassification if scalar else AutoModelForCausalLM).from_config(config)
    for name, parameter in model.named_parameters():  # biases and norms are born 0 and 1, where mistakes hide
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.1)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def policy_of(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def scalar_of(folder: Path) -> PreTrainedModel:
    """A reward model; made of a policy's folder, its head is random."""
    kind = AutoModelForSequenceClassification
    return kind.from_pretrained(folder, num_labels=1, attn_implementation="eager").eval()


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_run_of(folder: Path, stage: str, *inputs: str) -> None:
    """The run says which stage it was and what it read, so that a changed input is noticed."""
    assert json.loads((folder / "done.json").read_text())["stage"] == stage
    identity = json.loads((folder / "inputs.json").read_text())["identity"]
    assert (identity["stage"], set(identity["inputs"])) == (stage, set(inputs))


# --- what models say, by transformers' own forward pass ---------------------------------------------------------------


GROUPS = {
    "optimizer": ("learning_rate", "weight_decay", "betas", "epsilon", "max_grad_norm", "warmup_steps"),
    "algorithm": (
        "value_learning_rate", "cliprange", "cliprange_value", "gamma", "lam", "vf_coef", "whiten_advantages",
        "whiten_rewards",
    ),
    "sampler": ("temperature", "max_new_tokens"),
}  # fmt: skip


def grouped(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that tests name without their groups, as a stage's config takes them."""
    groups = {group: {n: settings[n] for n in names if n in settings} for group, names in GROUPS.items()}
    inside = {name for names in GROUPS.values() for name in names}
    rest = {name: value for name, value in settings.items() if name not in inside}
    return rest | {group: values for group, values in groups.items() if values}


def log_table(policy: PreTrainedModel, prompt: list[int], completion: list[int], temperature: float = 1.0) -> Tensor:
    """(t, v): log-probabilities of all tokens where the completion's t tokens are predicted."""
    logits = policy(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


def logprobs(policy: PreTrainedModel, prompt: list[int], completion: list[int], temperature: float = 1.0) -> Tensor:
    """(t,): log π of the completion's tokens."""
    return log_table(policy, prompt, completion, temperature)[range(len(completion)), completion]


def score(model: PreTrainedModel, sequence: list[int]) -> Tensor:
    """The score at a sequence's last token."""
    return model(torch.tensor([sequence])).logits[0, 0]


def values(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> Tensor:
    """(t,): the value of a state is the score of what has been written so far."""
    return torch.stack([score(model, prompt + completion[:t]) for t in range(len(completion))])


def mean_nll(policy: PreTrainedModel, row: list[int]) -> Tensor:
    """Mean loss of predicting each token of a row but the first, which nothing predicts."""
    return -logprobs(policy, row[:1], row[1:]).mean()


# --- updates ----------------------------------------------------------------------------------------------------------


@dataclass
class Step:
    """One step of an optimizer: rate, parameters before, their (clipped) gradients, parameters after."""

    rate: float
    before: list[Tensor]
    gradients: list[Tensor]
    after: list[Tensor] = field(default_factory=list)

    @property
    def of_scalar(self) -> bool:
        """Whether a model with a scalar head moved."""
        return any(p.shape == (1, WIDTH) for p in self.before)


def copies(tensors: Any) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


@contextmanager
def steps_taken() -> Iterator[list[Step]]:
    """All steps that any optimizer takes meanwhile."""
    steps: list[Step] = []

    def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        (group,) = optimizer.param_groups
        gradients = [p.grad for p in group["params"]]
        steps.append(Step(group["lr"], copies(group["params"]), copies(gradients)))

    def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        steps[-1].after = copies(optimizer.param_groups[0]["params"])

    hooks = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        yield steps
    finally:
        for hook in hooks:
            hook.remove()


class AdamW:
    """Clipping by norm and AdamW (Loshchilov and Hutter 2019), written out."""

    def __init__(self, model: PreTrainedModel, s: dict[str, Any]) -> None:
        self.parameters = list(model.parameters())
        self.s, self.t = s, 0
        self.m, self.v = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))

    @torch.no_grad()
    def step(self, rate: float) -> tuple[Step, float]:
        """Clip, step and clear: the step, and the norm before clipping."""
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in self.parameters))
        shrink = min(1.0, self.s["max_grad_norm"] / (norm + 1e-6))
        step = Step(rate, copies(self.parameters), [p.grad * shrink for p in self.parameters])
        self.t += 1
        (b1, b2), epsilon = self.s["betas"], self.s["epsilon"]
        for p, g, m, v in zip(self.parameters, step.gradients, self.m, self.v, strict=True):
            m.mul_(b1).add_((1 - b1) * g)
            v.mul_(b2).add_((1 - b2) * g**2)
            p.mul_(1 - rate * self.s["weight_decay"])
            p.sub_(rate * (m / (1 - b1**self.t)) / ((v / (1 - b2**self.t)).sqrt() + epsilon))
            p.grad = None
        step.after = copies(self.parameters)
        return step, norm


def assert_same_steps(actual: Sequence[Step], expected: Sequence[Step]) -> None:
    assert len(actual) == len(expected)
    for k, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert math.isclose(a.rate, e.rate, rel_tol=1e-9), f"step {k}: rate {a.rate}, expected {e.rate}"
        for what in ("before", "gradients", "after"):
            for i, (x, y) in enumerate(zip(getattr(a, what), getattr(e, what), strict=True)):
                assert_close(x, y, rtol=1e-4, atol=2e-6, msg=lambda m, at=(k, what, i): f"step {at}: {m}")


def assert_saved(folder: Path, model: PreTrainedModel) -> None:
    """The folder holds the model's weights."""
    saved, kept = load_file(folder / "model.safetensors"), dict(model.named_parameters())
    assert saved.keys() == kept.keys()
    for name, weight in kept.items():
        assert_close(saved[name], weight.detach(), rtol=1e-4, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")
