"""Settings of pretraining."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import model_validator

from tutelage.settings.common import Count, Source
from tutelage.settings.training import AdamW, Length, TrainingConfig

LARGEST = 10**10  # weights of a model to be trained from nothing


class PretrainConfig(TrainingConfig):
    """Train a small base model and its tokenizer from plain text (next-token prediction)."""

    INPUTS: ClassVar[Mapping[str, str]] = {"texts": "texts", "valid_texts": "texts"}

    texts: Source
    """Training text: any file or hub id with a `text` column, or a .txt file."""
    valid_texts: Source | None = None
    """Held-out text, for the validation loss."""
    vocab_size: Count = 1024
    """Byte-level BPE tokens at the most."""
    hidden_size: Count = 128
    """Width of the Llama model."""
    layers: Count = 4
    """Decoder layers."""
    heads: Count = 4
    """Attention heads."""
    intermediate_size: Count = 344
    """Width inside the feed-forward blocks."""
    context: Count = 512
    """Most tokens of a sequence the model is said to take."""
    sequence_length: Length = 128
    """Tokens of a training row; documents are joined by end-of-text."""
    batch_tokens: Count = 1024
    """Tokens of an update."""
    optimizer: AdamW = AdamW(learning_rate=3e-3, weight_decay=0.1, warmup_steps=100)
    """Linear warm-up, then a cosine to a tenth."""
    total_tokens: Count = 2_400_000
    """Tokens to train on, passing over the text again if it is shorter."""

    @model_validator(mode="after")
    def _shape_is_sound(self) -> PretrainConfig:
        width, heads = self.hidden_size, self.heads
        if width % (2 * heads):
            raise ValueError(
                f"hidden_size={width} is not divided by heads={heads} into even parts, as rotary positions need; "
                f"take {2 * heads * max(1, round(width / (2 * heads)))}"
            )
        if self.sequence_length > self.context:
            raise ValueError(
                f"sequence_length={self.sequence_length} is more than context={self.context}; raise context to it"
            )
        weights = self.vocab_size * width + self.layers * width * (4 * width + 3 * self.intermediate_size)
        if weights > LARGEST:
            raise ValueError(
                f"vocab_size, hidden_size, layers and intermediate_size make {weights:.1e} weights; at the most "
                f"{LARGEST:.0e} are trained here: take smaller ones"
            )
        return self
