"""Llama and its kin on a processor, with our kernels between the matrix products: the same numbers as transformers'
modules, whose weights these are, in about three quarters of the time.

Tokens lie on one flat axis without padding. In the last layer only the tokens whose hidden states are wanted go on past
attention. For other architectures and devices, and where no kernels can be made, `forward.py` calls transformers' own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tutelage.models.cpu import attention, kernels
from tutelage.models.frozen import FrozenLinear
from tutelage.models.packing import STEP, Flat, MicroBatch, rounded

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROTATIONS = ("default", "linear", "llama3", "yarn")  # others change with the length of what is read
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # query (n, h, d), key and value (n, h', d) to (n, h, d)


def supports(model: PreTrainedModel) -> bool:
    """Whether this module can stand in for the model's own forward pass."""
    config = model.config
    known = (
        config.model_type in FAMILIES
        and config._attn_implementation == attention.NAME
        and config.hidden_act == "silu"
        and config.rope_parameters["rope_type"] in ROTATIONS
        and not (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True))
        and model.device.type == "cpu"
        and model.dtype in kernels.SUFFIX
        and kernels.available()
    )
    if not known:
        return False
    base = model.base_model
    if model.training and any(layer.self_attn.attention_dropout for layer in base.layers):
        return False
    whole = [base, base.norm]  # what is not called as a module, so that hooks on it would not run
    for layer in base.layers:
        if model.training and layer.gradient_checkpointing:
            return False
        whole += [layer, layer.self_attn, layer.mlp, layer.input_layernorm, layer.post_attention_layernorm]
        parts = [getattr(part, name, None) for name in PROJECTIONS for part in (layer.self_attn, layer.mlp)]
        if not all(_is_linear(p) for p in parts if p is not None):
            return False  # shards, quantised weights
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in whole)
    turned = 2 * base.rotary_emb.inv_freq.numel() == base.layers[0].self_attn.head_dim
    return turned and not hooked and len(base.layers) == config.num_hidden_layers


def _is_linear(module: nn.Module) -> bool:
    """Whether it is called as a linear layer is, with an adapter beside its weight or without."""
    plain = getattr(module, "base_layer", module) if hasattr(module, "lora_A") else module
    return type(plain) in (nn.Linear, FrozenLinear) and type(plain.weight) is nn.Parameter


def hidden_states(model: PreTrainedModel, tokens: Flat, wanted: Tensor) -> Tensor:
    """(m, d) last hidden states, final norm included, of the wanted of n tokens (m,)."""
    base, step = model.base_model, _step(model)
    turned = angles(model, _filled(tokens.positions, step))

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return kernels.attention(query, key, value, turned, tokens.trees, scaling(model))

    x, more = base.embed_tokens(_filled(tokens.ids, step)), None
    for number, layer in enumerate(base.layers, 1):
        x, more = _block(layer, x, more, attend, _filled(wanted, step) if number == len(base.layers) else None)
    return _norm(base.norm, x, more, x.dtype)[1][: len(wanted)]


def angles(model: PreTrainedModel, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (n, d) of the rotations at positions (n,), in fp32."""
    cos, sin = model.base_model.rotary_emb(torch.empty(0), positions[None])
    return cos[0].contiguous(), sin[0].contiguous()


def scaling(model: PreTrainedModel) -> float:
    """Of the scores of attention."""
    return float(model.base_model.layers[0].self_attn.scaling)


def _step(model: PreTrainedModel) -> int:
    """Numbers of tokens are rounded up to a multiple of this."""
    return STEP if _products(model.dtype) == torch.bfloat16 else 1


def _filled(x: Tensor, step: int) -> Tensor:
    """Of tokens (n, …), zeros after them up to a multiple of step; they are in no tree, and nothing reads them."""
    more = rounded(len(x), step) - len(x)
    return torch.cat([x, x.new_zeros(more, *x.shape[1:])]) if more else x


def _products(dtype: torch.dtype) -> torch.dtype:
    """The dtype of products with weights of this one."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else dtype


def _norm(
    module: Any, x: Tensor, more: Tensor | None = None, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """x + more, and its norm in this dtype; by default in that of products, which come next."""
    how = (module.weight, module.variance_epsilon, dtype or _products(x.dtype))
    return (x, kernels.rms_norm(x, *how)) if more is None else kernels.add_rms_norm(x, more, *how)


def _block(
    layer: Any, x: Tensor, more: Tensor | None, attend: Attend, wanted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x + more (n, d) through one layer, whose result is again a sum of two: the norm that comes next adds them.

    Past attention only the wanted tokens go on, None for all.
    """
    of, mlp = layer.self_attn, layer.mlp
    x, y = _norm(layer.input_layernorm, x, more)
    query, key, value = (project(y).unflatten(-1, (-1, of.head_dim)) for project in (of.q_proj, of.k_proj, of.v_proj))
    if hasattr(of, "q_norm"):
        query, key = _norm(of.q_norm, query)[1], _norm(of.k_norm, key)[1]
    mixed = attend(query, key, value).flatten(-2)
    if wanted is not None:
        x, mixed = x[wanted], mixed[wanted]
    x, y = _norm(layer.post_attention_layernorm, x, of.o_proj(mixed))
    return x, mlp.down_proj(kernels.swiglu(mlp.gate_proj(y), mlp.up_proj(y)))


class Memory:
    """What a model has read, by place: prompts are read, then every row goes on a token at a time in its own place.

    Rows may have any lengths and any places, so a finished row costs nothing from then on; those that go on from the
    same prompt share the place of the first of them for it.
    """

    keep = 1.0  # rows are dropped as soon as one has finished

    def __init__(self, model: PreTrainedModel, places: int, slots: int) -> None:
        self.model, self.scaling, self.rounding = model, scaling(model), min(16, _step(model))
        self.angles = angles(model, torch.arange(slots))
        self.home, self.shared = torch.zeros(2, places, dtype=torch.long)  # where a row's prompt is, and its length
        config, head = model.config, model.base_model.layers[0].self_attn.head_dim
        self.caches = [
            kernels.Cache.empty(places, config.num_key_value_heads, slots, head, model.dtype)
            for _ in range(config.num_hidden_layers)
        ]

    def free(self, place: Tensor) -> list[int]:
        """Places that rows in these places leave."""
        taken = {*place.tolist(), *self.home[place].tolist()}
        return [p for p in range(len(self.home)) if p not in taken]

    def read(self, prompts: MicroBatch, copies: Sequence[Sequence[int]]) -> Tensor:
        """(u, d) hidden states at the prompts' last tokens; the rows in the places `copies[u]` go on from the u-th."""
        flat = prompts.flat()
        for places, n in zip(copies, prompts.lengths, strict=True):
            self.home[places], self.shared[places] = places[0], n
        place = torch.tensor([places[0] for places in copies]).repeat_interleave(prompts.lengths)
        turned, every = self._angles(_filled(flat.positions, self.rounding)), torch.arange(len(flat.ids))

        def attend(cache: kernels.Cache, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            cache.remember(key, value, turned, every, place, flat.positions)
            return kernels.attention(query, key, value, turned, flat.trees, self.scaling)

        return self._through(flat.ids, attend, flat.index[torch.arange(len(copies)), prompts.lengths - 1])

    def step(self, tokens: Tensor, positions: Tensor, place: Tensor) -> Tensor:
        """(b, d) hidden states after one more token (b,) at its position (b,) in each place (b,)."""
        turned, every = self._angles(positions), torch.arange(len(tokens))
        beginning, length = (self.home[place], self.shared[place]), positions + 1

        def attend(cache: kernels.Cache, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            cache.remember(key, value, turned, every, place, positions)
            found = cache.recall(query[: len(place)], turned, beginning, place, length, self.scaling)
            return _filled(found, self.rounding)

        return self._through(tokens, attend, None)

    def close_ranks(self, place: Tensor) -> Tensor:
        """Where the rows of these places are now: where they were."""
        return place

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.angles[0][positions], self.angles[1][positions]

    def _through(self, ids: Tensor, attend: Callable[..., Tensor], wanted: Tensor | None) -> Tensor:
        """Hidden states of tokens (n,), or of the wanted ones, with a cache for each layer's attention."""
        base = self.model.base_model
        x, more = base.embed_tokens(_filled(ids, self.rounding)), None
        last = None if wanted is None else _filled(wanted, self.rounding)
        for number, (layer, cache) in enumerate(zip(base.layers, self.caches, strict=True), 1):
            x, more = _block(layer, x, more, partial(attend, cache), last if number == len(base.layers) else None)
        return _norm(base.norm, x, more)[1][: len(ids if wanted is None else wanted)]
