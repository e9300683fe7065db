"""Models from folders and back: Hugging Face's own classes and files, safetensors only, no remote code.

Policies are `AutoModelForCausalLM`; reward and value models `AutoModelForSequenceClassification` with one label.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tutelage.files import read_json
from tutelage.models.adapters import (
    CONFIG,
    adapter_of,
    add_adapter,
    base_of,
    initialise_head,
    is_adapter,
    load_adapter,
    merge,
    require_same_adapter,
    save_adapter,
    scalar_beside,
)
from tutelage.models.architecture import output_head, set_dropout
from tutelage.models.cpu import attention
from tutelage.models.forward import with_forward
from tutelage.models.precision import device
from tutelage.models.tokens import load_tokenizer, turn_of
from tutelage.settings.training import Lora
from tutelage.terminal import reason

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

HEADS = ("score.", "classifier.", "pooler.", "bert.pooler.")  # what a classifier has beside the model beneath
LARGE = 50  # times what a head usually reads, which shows what bends or cuts its numbers


def load_policy(
    folder: str | Path, tokenizer: PreTrainedTokenizerBase, adapter: Lora | None = None, seed: int = 0
) -> PreTrainedModel:
    """A causal language model in fp32, in evaluation mode, without dropout, on the device.

    The folder of an adapter gives its base with the adapter merged into it. With `adapter`, one is trained: a new one
    or, from such a folder, the one that is there.

    Raises:
        ValueError: if there is no such model, weights are missing or not finite, it does not read from left to right,
            its logits are no function of its last hidden states that `Head` knows, or an adapter does not fit.
    """
    base = base_of(folder)
    model, missing, unexpected = _open(AutoModelForCausalLM, base, "causal language model")
    if _has_head(base) or is_scalar_adapter(folder):
        raise ValueError(f"{folder}: is a reward model; a language model is wanted")
    if missing or unexpected:
        raise ValueError(f"{folder}: {_amiss(missing, unexpected)}; save the whole language model and its config anew")
    _fit(model, tokenizer, folder)
    model = model.to(device()).eval()
    _check(model, folder, model.get_output_embeddings(), lambda hidden: output_head(model).logits(hidden))
    return with_forward(_adapted(model, folder, adapter, seed))


def _adapted(model: PreTrainedModel, folder: str | Path, adapter: Lora | None, seed: int) -> PreTrainedModel:
    """A base model with a new adapter; or with the one of this folder, merged unless it is to be trained."""
    if not is_adapter(folder):
        return model if adapter is None else add_adapter(model, adapter, str(folder), seed)
    model = load_adapter(model, folder, whole=adapter is None)
    if (broken := _broken(model)) is not None:
        raise ValueError(f"{folder}: the weight {broken} is not finite (NaN or infinity); use an earlier checkpoint")
    if adapter is None:
        return merge(model)
    require_same_adapter(model, adapter, folder)
    return model


def load_scalar(
    folder: str | Path, tokenizer: PreTrainedTokenizerBase, policy: PreTrainedModel | None = None
) -> PreTrainedModel:
    """A reward or value model: one score for a sequence, read at its final token; in fp32, without dropout.

    The folder of an adapter gives its base with the adapter merged; or beside it, where `policy` has an adapter of the
    same base, whose weights the two then share.

    Raises:
        ValueError: if there is no such model, it is a language model without a scalar head, weights are missing or not
            finite, or the score is more than one linear layer over the final token's hidden state.
    """
    base = base_of(folder)
    if is_adapter(folder):
        if not is_scalar_adapter(folder):
            raise ValueError(
                f"{folder}: is a language model; a reward model is wanted: train one with `tutelage reward`"
            )
        ours = adapter_of(policy) if policy is not None else None
        if policy is not None and ours is not None and _same_folder(ours.base, base):
            return load_adapter(scalar_beside(policy, 0), folder).eval()
        return new_scalar(folder, tokenizer, 0)
    model, missing, unexpected = _open(AutoModelForSequenceClassification, folder, "reward model", num_labels=1)
    _require_score(model, folder)
    if missing and not _has_head(folder):
        raise ValueError(f"{folder}: is a language model; a reward model is wanted: train one with `tutelage reward`")
    if missing or unexpected:
        raise ValueError(f"{folder}: {_amiss(missing, unexpected)}; save the whole reward model and its config anew")
    return _scalar(model, tokenizer, folder)


def new_scalar(
    folder: str | Path, tokenizer: PreTrainedTokenizerBase, seed: int, adapter: Lora | None = None
) -> PreTrainedModel:
    """A reward model initialised from a policy, its head ~ N(0, 1/(d+1)) (Stiennon 2020, appendix); a reward model
    keeps the head it has. Of adapters see `load_policy`.

    Raises:
        ValueError: as `load_scalar` does, but for the head that a policy lacks.
    """
    base = base_of(folder)
    model, missing, unexpected = _open(AutoModelForSequenceClassification, base, "model", num_labels=1)
    _require_score(model, folder)
    head = set() if _has_head(base) else {name for name in missing if name.startswith("score.")}
    unexpected -= {name for name in unexpected if name.startswith(("lm_head.", "embed_out.", "output."))}
    if missing - head or unexpected:
        raise ValueError(f"{folder}: {_amiss(missing - head, unexpected)}; save the whole model and its config anew")
    if head:
        initialise_head(model, seed)
    return with_forward(_adapted(_scalar(model, tokenizer, folder), folder, adapter, seed))


def is_scalar_adapter(folder: str | Path) -> bool:
    """Whether a folder holds a reward model's adapter."""
    return is_adapter(folder) and read_json(Path(folder) / CONFIG).get("task_type") == "SEQ_CLS"


def _same_folder(one: str, other: str) -> bool:
    return one == other or (Path(one).is_dir() and Path(other).is_dir() and Path(one).samefile(other))


def load_classifier(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier of any kind with its own tokenizer, in fp32, in evaluation mode, on the device.

    Raises:
        ValueError: if there is no such model or tokenizer, or weights are missing or not finite.
    """
    model, missing, _ = _open(AutoModelForSequenceClassification, folder, "classifier")
    if missing:
        raise ValueError(f"{folder}: {_amiss(missing, set())}; is it a classifier?")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of any kind, by the libraries beneath
        raise ValueError(f"{folder}: no tokenizer found here: {reason(error)}") from None
    return model.to(device()).eval(), tokenizer


def new_classifier(
    folder: str | Path, labels: Sequence[str], seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier of these labels, exactly one of which holds of a text, with a new head on a language model
    or an encoder; and its tokenizer.

    Raises:
        ValueError: if there is no such model or tokenizer.
    """
    names = dict(enumerate(labels))
    options = {"num_labels": len(labels), "id2label": names, "label2id": {name: i for i, name in names.items()}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, missing, _ = _open(AutoModelForSequenceClassification, folder, "model", **options)
        if body := {name for name in missing if not name.startswith(HEADS)}:
            raise ValueError(f"{folder}: {_amiss(body, set())}; save the whole model and its config anew")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # of any kind, by the libraries beneath
            raise ValueError(f"{folder}: no tokenizer found here: {reason(error)}") from None
        if tokenizer.pad_token_id is None:
            tokenizer = load_tokenizer(folder)
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.problem_type = "single_label_classification"
    return model.to(device()).eval(), tokenizer


def _open(kind: Any, folder: str | Path, what: str, **options: Any) -> tuple[PreTrainedModel, set[str], set[str]]:
    """The model in fp32, and the names of weights that the folder lacks and that the model has no place for.

    Raises:
        ValueError: if it cannot be opened or takes pictures too, or some weight is not finite.
    """
    try:
        model, report = kind.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True,
            **options,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        if "ignore_mismatched_sizes" in str(error):  # the weights of another head
            raise ValueError(
                f"{folder}: its head has another shape than a {what}'s; if it is a classifier, give it to online as "
                f"rewards={{NAME: {{name: classifier, model: {folder}, label: …}}}}"
            ) from None
        if "Unrecognized configuration class" in str(error):  # a long list follows, of the classes that it has
            raise ValueError(f"{folder}: transformers has no {what} of this architecture; use another one") from None
        raise ValueError(f"{folder}: no {what} found here: {reason(error)}") from None
    except (AttributeError, ImportError, IndexError, KeyError, TypeError) as error:  # a config that its class rejects
        raise ValueError(f"{folder}: transformers cannot make this model: {reason(error)}") from None
    if model.config.get_text_config() is not model.config:
        raise ValueError(f"{folder}: {type(model).__name__} reads more than text; save its language model by itself")
    if report["mismatched_keys"]:
        name = min(str(key) for key in report["mismatched_keys"])
        raise ValueError(f"{folder}: the weight {name} has another shape than its config says")
    if (broken := _broken(model)) is not None:
        raise ValueError(f"{folder}: the weight {broken} is not finite (NaN or infinity); use an earlier checkpoint")
    return model, set(report["missing_keys"]), set(report["unexpected_keys"])


def _has_head(folder: str | Path) -> bool:
    """Whether the folder says that it holds a classifier."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return "ForSequenceClassification" in (config.architectures or [""])[0]


def _amiss(missing: set[str], unexpected: set[str]) -> str:
    kind, names = ("lacks", missing) if missing else ("has weights that its config knows nothing of:", unexpected)
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{kind} {'the weight ' if missing else ''}{min(names)}{more}"


def _require_score(model: PreTrainedModel, folder: str | Path) -> nn.Linear:
    score = getattr(model, "score", None)
    if not isinstance(score, nn.Linear) or score.out_features != 1:
        raise ValueError(
            f"{folder}: {type(model).__name__} has no linear `score` head; this architecture is not supported"
        )
    return score


def _scalar(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> PreTrainedModel:
    score = _require_score(model, folder)
    _fit(model, tokenizer, folder)
    model = model.to(device()).eval()
    _check(model, folder, score, lambda hidden: score(hidden[:, -1]))
    return with_forward(model)


def _fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Our attention where torch's would be used, no dropout, and the tokenizer's special tokens."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(attention.NAME)
    set_dropout(model, 0.0)
    vocabulary = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > vocabulary:
        if len(tokenizer) > vocabulary + 1:
            raise ValueError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model only {vocabulary}")
        # The padding token that load_tokenizer added; its row is drawn around the mean of the others, always alike.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.resize_token_embeddings(len(tokenizer))
    ends = _ends(model, tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    if model.can_generate():
        model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a text: end-of-text, the template's end of a turn, and what the folder declares.

    Of the last only special tokens count: a config that never said what ends a text has a number from its class.
    """
    declared: list[int | None] = []
    for config in (model.config, getattr(model, "generation_config", None)):
        ids = getattr(config, "eos_token_id", None)
        declared += ids if isinstance(ids, list) else [ids]
    special = [i for i in declared if i in tokenizer.added_tokens_decoder]
    turn = tokenizer.convert_tokens_to_ids(turn_of(tokenizer).end)
    return list(dict.fromkeys([tokenizer.eos_token_id, turn, *special]))


@torch.no_grad()
def _check(
    model: PreTrainedModel, folder: str | Path, head: nn.Module, ours: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Refuse by name what our passes would get wrong.

    `ours` makes the model's numbers from its last hidden states (1, l, d). They must be those of its own forward pass,
    also where they are large, as a soft cap is invisible elsewhere; and what comes later must change nothing before.
    """
    name = type(model).__name__
    size, pad = model.get_input_embeddings().num_embeddings, model.config.pad_token_id
    ids = torch.tensor([[i for i in range(9) if i != pad][:8]], device=model.device) % size
    try:
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        beginning = model.base_model(input_ids=ids[:, :4], use_cache=False).last_hidden_state
        pairs = [(ours(hidden), model(input_ids=ids, use_cache=False).logits)]
        enlarge = head.register_forward_pre_hook(lambda module, inputs: (inputs[0] * LARGE,))
        large = model(input_ids=ids, use_cache=False).logits
        enlarge.remove()
        pairs.append((ours(hidden * LARGE), large))
    except Exception as error:  # of any kind: transformers has a hundred architectures
        raise ValueError(f"{folder}: {name} cannot be read as plain text: {reason(error)}") from None
    if not torch.allclose(hidden[:, :4], beginning, atol=1e-3, rtol=1e-3):
        raise ValueError(f"{folder}: {name} reads in both directions; a model that reads from left to right is wanted")
    if not all(a.shape == b.shape and (a - b).abs().max() <= 1e-3 * max(1.0, float(b.abs().max())) for a, b in pairs):
        raise ValueError(
            f"{folder}: {name} makes its numbers from its last hidden states in a way that this version does not "
            "reproduce; use another architecture"
        )


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save model, or its adapter alone, and tokenizer as a Hugging Face folder, which appears whole or not at all.

    What it replaces is in `NAME.old` for a moment; `open_run` puts it back if the process is killed then.

    Raises:
        ValueError: if a weight is not finite; what stands in the folder stays.
        OSError: if it cannot be written; likewise.
    """
    require_finite(model, f"{folder}: not written")
    with scratch_folder(folder.with_name(folder.name + ".tmp")) as scratch:
        if adapter_of(model) is None:
            model.save_pretrained(scratch)
        else:
            save_adapter(model, scratch)
        tokenizer.save_pretrained(scratch)
        for file in scratch.iterdir():  # safetensors lets nobody else read what it writes
            file.chmod(0o666 & ~_umask())
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(scratch, folder)
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write weights into; nothing stays of it if that fails.

    Raises:
        OSError: if it fails, in one line, whichever library met the fault.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()  # the run's folder was made at its start: if it is gone, so is the run
        yield folder
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        cause = reason(error).removeprefix("Error while serializing: ")
        raise OSError(
            f"{folder}: cannot be written: {cause}; what was saved before it is kept, and the same command goes on "
            "from there"
        ) from None


def require_finite(model: nn.Module, what: str) -> None:
    """Refuse to keep weights that training has broken.

    Raises:
        ValueError: naming the first weight that is not finite.
    """
    if (name := _broken(model)) is not None:
        raise ValueError(
            f"{what}: the weight {name} is not finite (NaN or infinity) after the last update; what was saved before "
            "is kept. Try a lower optimizer.learning_rate, or a longer warm-up"
        )


def _broken(model: nn.Module) -> str | None:
    """The first weight that is not finite, or None."""
    return next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), None)
