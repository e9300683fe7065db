"""LoRA (Hu 2022) through PEFT: a few trained matrices beside frozen weights, which several models then share.

A model with an adapter is the model it was, with PEFT's layers in place of its linear ones; so all that is said of
models elsewhere holds of it. Folders are PEFT's own, with the base's sha256 beside them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tutelage.files import fingerprint, read_json, write_json
from tutelage.models.forward import with_forward
from tutelage.models.frozen import freeze, return_large_blocks
from tutelage.settings.common import nearest
from tutelage.settings.training import Lora
from tutelage.terminal import listed, reason

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
PREFIX, NAME = "base_model.model.", ".default"  # what PEFT's files have before a weight's name, and modules within it
HEAD = "score."  # a scalar model's, which is trained whole


@dataclass(frozen=True)
class Adapter:
    """What a model with an adapter knows of it: PEFT's config, the base's folder or hub id, and a folder's sha256."""

    config: Any
    base: str
    sha256: str | None


def adapter_of(model: nn.Module) -> Adapter | None:
    """The model's adapter, None if it has none."""
    return getattr(model, "_adapter", None)


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter."""
    return (Path(folder) / CONFIG).exists()


def base_of(folder: str | Path) -> str:
    """The folder or hub id of the model itself: of an adapter its base's.

    Raises:
        ValueError: if it is no LoRA adapter of a plain model, or that model was a folder which is not here.
    """
    if not is_adapter(folder):
        return str(folder)
    config = read_json(Path(folder) / CONFIG)
    kind, base = (
        config.get(key) if isinstance(config, dict) else None for key in ("peft_type", "base_model_name_or_path")
    )
    if kind != "LORA" or not base:
        raise ValueError(f"{folder}: {CONFIG} names no LoRA adapter with its base; only these are read")
    if is_adapter(base):
        raise ValueError(f"{folder}: its base {base} is an adapter itself; merge that with `tutelage merge`")
    note = Path(folder) / BASE
    if note.exists() and read_json(note).get("sha256") and not Path(base).is_dir():
        raise ValueError(
            f"{folder}: its base was the folder {base}, which is not here: give the command where it is, or write its "
            f"new place into {CONFIG}"
        )
    return str(base)


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that are the model's own, by name: all or, with an adapter, its matrices and a scalar head."""
    every = dict(model.named_parameters())
    if adapter_of(model) is None:
        return every
    return {name: p for name, p in every.items() if ".lora_" in name or name.startswith(HEAD)}


def add_adapter(model: PreTrainedModel, settings: Lora, base: str, seed: int) -> PreTrainedModel:
    """Freeze the model and put a new adapter into it, which changes nothing until it is trained.

    Raises:
        ValueError: if a target is no linear layer of its body.
    """
    from peft import LoraConfig

    targets = _targets(model, settings.targets)
    layers = [m for name, m in model.base_model.named_modules() if name.split(".")[-1] in targets]
    scalar = hasattr(model, "score")
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=targets,
        base_model_name_or_path=base, task_type="SEQ_CLS" if scalar else "CAUSAL_LM", inference_mode=True,
        modules_to_save=["score"] if scalar else None, fan_in_fan_out=isinstance(layers[0], Conv1D),
    )  # fmt: skip
    if scalar:
        model.score = copy.deepcopy(model.score)  # the frozen one may be another model's too
    return _inject(model, Adapter(config, base, fingerprint(Path(base)) if Path(base).is_dir() else None), seed)


def _targets(model: PreTrainedModel, wanted: Sequence[str]) -> list[str]:
    """Names of linear layers, by their last part: those that are wanted, all if none is named."""
    known = {name.split(".")[-1] for name, m in model.base_model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    heads = {name.split(".")[-1] for name, m in model.named_modules() if m is model.get_output_embeddings()} | {"score"}
    for name in wanted:
        if name in heads - known:
            raise ValueError(
                f"adapter.targets: {name} is the output head, whose weight is read as it is, so an adapter there would "
                "do nothing; leave it out"
            )
        if name not in known:
            raise ValueError(f"adapter.targets: no linear layer is called {name!r}; {nearest(name, sorted(known))}")
    return list(wanted) or sorted(known)


def _inject(model: PreTrainedModel, adapter: Adapter, seed: int = 0) -> PreTrainedModel:
    from peft import inject_adapter_in_model

    config = copy.deepcopy(adapter.config)
    config.modules_to_save = None  # a head is a plain layer here, and trained with the rest
    config.inference_mode = False
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    model._adapter = adapter
    return_large_blocks()
    for _, _, layer in _layers(model):
        freeze(layer.get_base_layer())
    for parameter in own_parameters(model).values():
        parameter.requires_grad_(True)
    return model


def load_adapter(model: PreTrainedModel, folder: str | Path, whole: bool = False) -> PreTrainedModel:
    """Put a folder's adapter into its base model, trainable. With `whole` it may hold weights of the base too, which
    it replaces: that is for a model that shares no weights, and is merged.

    Raises:
        ValueError: if its weights are missing, damaged, of another base or of other shapes, or are of a kind that is
            not read.
    """
    from peft import PeftConfig

    base = base_of(folder)
    note = Path(folder) / BASE
    sha256 = fingerprint(Path(base)) if Path(base).is_dir() else None
    if note.exists() and sha256 is not None and (trained := read_json(note).get("sha256")) not in (None, sha256):
        raise ValueError(
            f"{folder}: is an adapter of another base: {base} has changed since it was trained (sha256 {trained[:12]}…,"
            f" now {sha256[:12]}…)"
        )
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    try:
        config = PeftConfig.from_pretrained(str(folder))
        headed = config.task_type == "SEQ_CLS"
        if hasattr(model, "score"):  # a policy's adapter may become a reward model's
            config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
        weights = load_file(Path(folder) / WEIGHTS)
        model = _inject(model, Adapter(config, base, sha256))
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"{folder}: this adapter cannot be read: {reason(error)}") from None
    weights = {key.removeprefix(PREFIX): value for key, value in weights.items()}
    parameters, own = (
        {name.replace(NAME, ""): p for name, p in named.items()}
        for named in (dict(model.named_parameters()), own_parameters(model))
    )
    if config.use_dora:
        raise ValueError(f"{folder}: is a DoRA adapter, with a magnitude beside its matrices; only LoRA is read")
    if tied and (
        model.get_input_embeddings() is not embedding or any(parameters.get(n) is head.weight for n in weights)
    ):
        raise ValueError(
            f"{folder}: changes the embedding, whose weight is {base}'s output head too, so the two had to part; "
            "train an adapter of the layers between them"
        )
    if (others := sorted(weights.keys() - own.keys())) and not whole:
        raise ValueError(
            f"{folder}: holds {listed(others)} beside LoRA's matrices, which belong to the base; merge it with "
            "`tutelage merge`"
        )
    for name, value in weights.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise ValueError(f"{folder}: is an adapter of another base: {base} has no weight {name} of its shape")
    if missing := [name for name in own.keys() - weights.keys() if headed or not name.startswith(HEAD)]:
        raise ValueError(f"{folder}: this adapter lacks the weight {min(missing)}; train it anew")
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    return model


def require_same_adapter(model: PreTrainedModel, settings: Lora, folder: str | Path) -> None:
    """See that an adapter that is trained on is as the settings say.

    Raises:
        ValueError: naming what differs.
    """
    adapter = adapter_of(model)
    assert adapter is not None
    config = adapter.config
    theirs = {"rank": config.r, "alpha": config.lora_alpha, "targets": sorted(config.target_modules)}
    wanted = {
        "rank": settings.rank,
        "alpha": settings.alpha,
        "targets": sorted(_targets(without_adapter(model), settings.targets)),
    }
    for name, value in theirs.items():
        if value != wanted[name]:
            raise ValueError(
                f"{folder}: is an adapter with {name}={value}, but adapter.{name}={wanted[name]}; set it to the same, "
                "or merge the adapter with `tutelage merge` and start another"
            )


def save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Write the model's adapter as PEFT does."""
    adapter = adapter_of(model)
    assert adapter is not None
    adapter.config.save_pretrained(folder)
    own = own_parameters(model).items()
    save_file({PREFIX + n.replace(NAME, ""): p.detach().cpu().contiguous() for n, p in own}, folder / WEIGHTS)
    write_json(folder / BASE, {"base": adapter.base, "sha256": adapter.sha256})


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its adapter's products added to its own weights: a plain model."""
    for parent, name, layer in _layers(model):
        layer.merge()
        setattr(parent, name, layer.get_base_layer())
    return _without(model).requires_grad_(True)


def beside(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that shares all weights with the model, but for those of its adapter."""
    own = {id(p) for p in own_parameters(model).values()} if adapter_of(model) is not None else set()
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(x): x for x in shared if id(x) not in own})


def without_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it is with its adapter off; it shares all weights."""
    model = beside(model)
    for parent, name, layer in _layers(model):
        setattr(parent, name, layer.get_base_layer())
    return _without(model)


def _without(model: PreTrainedModel) -> PreTrainedModel:
    model._adapter = None
    return model


def _layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaseTunerLayer):
                yield parent, name, child


def scalar_beside(policy: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model with a scalar head (see `initialise_head`) on a policy's own weights, its adapter off."""
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    with torch.device("meta"):
        scalar = AutoModelForSequenceClassification.from_config(
            config, attn_implementation=config._attn_implementation
        ).eval()
    setattr(scalar, scalar.base_model_prefix, without_adapter(policy).base_model)
    scalar.score = nn.Linear(scalar.score.in_features, 1, bias=scalar.score.bias is not None, device=policy.device)
    initialise_head(scalar, seed)
    return with_forward(scalar)


@torch.no_grad()
def initialise_head(model: PreTrainedModel, seed: int) -> None:
    """Draw a scalar head ~ N(0, 1/(d+1)) (Stiennon 2020, appendix)."""
    generator = torch.Generator().manual_seed(seed)
    width = model.score.in_features
    model.score.weight.copy_(torch.randn(1, width, generator=generator) / (width + 1) ** 0.5)
    if model.score.bias is not None:
        model.score.bias.zero_()
