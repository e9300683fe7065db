"""What a Hugging Face model has read, by place: a cache that is allocated once or, where an architecture's cache cannot
be used so, the tokens, which are then read again for every new one.

The same for Llama and its kin on processors, with our kernels, is `models/cpu/llama.py`'s `Memory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from tutelage.models.cpu import llama
from tutelage.models.forward import as_read, hidden_at
from tutelage.models.packing import MicroBatch, micro_batches


class _Layer(CacheLayerMixin):
    """Keys and values of one layer, (places, heads, slots, d). A row's tokens have the slots from 0 on."""

    is_sliding = False

    def __init__(self, places: int, slots: int) -> None:
        super().__init__()
        self.places, self.slots = places, slots
        self.positions = torch.empty(0)  # (b,) of the token that each row is about to read
        self.used = 0  # slots that some row uses

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        # Zeros, as a masked slot still enters the sums, times 0: what memory held before may be no number.
        self.keys, self.values = (
            x.new_zeros(self.places, x.shape[1], self.slots, x.shape[3]) for x in (key_states, value_states)
        )
        self.is_initialized = True

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def admit(self, keys: torch.Tensor, values: torch.Tensor, copies: Sequence[Sequence[int]]) -> None:
        """Add prompts (u, heads, l, d), right-padded, the u-th into the places `copies[u]`."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.used = max(self.used, keys.shape[2])
        for mine, given in zip(self.tensors, (keys, values), strict=True):
            for places, prompt in zip(copies, given, strict=True):
                mine[places, :, : prompt.shape[1]] = prompt

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.arange(len(key_states), device=key_states.device)
        keys, values = self.tensors
        keys[rows, :, self.positions] = key_states[:, :, 0]
        values[rows, :, self.positions] = value_states[:, :, 0]
        return keys[: len(rows), :, : self.used], values[: len(rows), :, : self.used]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.used, 0

    def get_seq_length(self) -> int:
        return self.used - 1

    def get_max_length(self) -> int:
        return self.slots


class Memory:
    """Rows have the places from 0 on: those that go on are moved up when enough of them have finished."""

    keep = 0.75  # move up once fewer than this share of the rows go on

    def __init__(self, model: PreTrainedModel, places: int, slots: int) -> None:
        self.model, self.places = model, places
        self.layers = [_Layer(places, slots) for _ in range(model.config.num_hidden_layers)]
        self.cache = Cache(layers=self.layers)

    def free(self, place: torch.Tensor) -> list[int]:
        """Places that rows in these places leave."""
        return sorted(set(range(self.places)) - set(place.tolist()))

    def read(self, prompts: MicroBatch, copies: Sequence[Sequence[int]]) -> torch.Tensor:
        """(u, d) hidden states at the prompts' last tokens; the rows in the places `copies[u]` go on from the u-th."""
        read = DynamicCache()
        out = self.model.base_model(input_ids=prompts.ids, past_key_values=read, use_cache=True).last_hidden_state
        for layer, given in zip(self.layers, read.layers, strict=True):
            layer.admit(given.keys, given.values, copies)
        return out[torch.arange(len(out), device=out.device), prompts.lengths - 1]

    def step(self, tokens: torch.Tensor, positions: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """(b, d) hidden states after one more token (b,) at its position (b,) in each place (b,), 0 to b - 1."""
        used = int(positions.max()) + 1
        for layer in self.layers:
            layer.positions, layer.used = positions, used
        seen = torch.arange(used, device=positions.device) <= positions[:, None]
        mask = None if seen.all() else as_read(self.model, seen[:, None, None])
        return self.model.base_model(
            input_ids=tokens[:, None], attention_mask=mask,
            position_ids=positions[:, None], past_key_values=self.cache, use_cache=True,
        ).last_hidden_state[:, -1]  # fmt: skip

    def close_ranks(self, place: torch.Tensor) -> torch.Tensor:
        """Move the rows of these places up, in their order; their places (b,) now."""
        for layer in self.layers:
            for mine in layer.tensors:
                mine[: len(place), :, : layer.used] = mine[place, :, : layer.used]
        return torch.arange(len(place), device=place.device)


class Rereading:
    """Tokens by place; a row is read whole for each token. Slow, and right wherever a plain forward pass is."""

    keep = 1.0  # rows are dropped as soon as one has finished

    def __init__(self, model: PreTrainedModel, places: int, slots: int) -> None:
        self.model = model
        self.ids = torch.zeros(places, slots, dtype=torch.long, device=model.device)

    def free(self, place: torch.Tensor) -> list[int]:
        """Places that rows in these places leave."""
        return sorted(set(range(len(self.ids))) - set(place.tolist()))

    def read(self, prompts: MicroBatch, copies: Sequence[Sequence[int]]) -> torch.Tensor:
        """(u, d) hidden states at the prompts' last tokens; the rows in the places `copies[u]` go on from the u-th."""
        for places, ids in zip(copies, prompts.ids, strict=True):
            self.ids[places, : len(ids)] = ids
        return hidden_at(self.model, prompts, torch.arange(len(copies), device=self.ids.device), prompts.lengths - 1)

    def step(self, tokens: torch.Tensor, positions: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """(b, d) hidden states after one more token (b,) at its position (b,) in each place (b,)."""
        self.ids[place, positions] = tokens
        rows = list(range(len(place)))
        batch = MicroBatch(rows, self.ids[place, : int(positions.max()) + 1], positions + 1)
        return hidden_at(self.model, batch, torch.tensor(rows, device=self.ids.device), positions)

    def close_ranks(self, place: torch.Tensor) -> torch.Tensor:
        """Where the rows of these places are now: where they were."""
        return place


_remembers: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@torch.no_grad()
def remembers(model: PreTrainedModel) -> bool:
    """Whether a step with `Memory` gives what the whole rows give: tried once, on rows of unlike lengths."""
    if llama.supports(model):
        return True
    if model not in _remembers:
        size = model.get_input_embeddings().num_embeddings
        rows = [[token % size for token in range(start, end)] for start, end in ((2, 12), (12, 18))]
        (batch,) = micro_batches(rows, 1000, 0)  # the shorter one first
        batch, training = batch.to(model.device), model.training
        model.eval()
        both, close = torch.arange(2, device=model.device), True
        try:
            memory = Memory(model, 2, 16)
            prompts = MicroBatch(batch.rows, batch.ids[:, :7], batch.lengths - 3)
            memory.read(prompts, [[0], [1]])
            for step in range(3):
                position = batch.lengths - 3 + step
                found = memory.step(batch.ids[both, position], position, both)
                expected = hidden_at(model, batch, both, position)
                close &= bool((found - expected).abs().max() <= 1e-4 * expected.abs().max())  # not so for NaN
        except Exception:  # of any kind: some take no such mask, some keep no keys
            close = False
        _remembers[model] = close
        model.train(training)
    return _remembers[model]
