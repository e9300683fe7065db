"""One label of a sequence classifier as a reward; it has tokens of its own and may read in both directions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.data.records import Text
from tutelage.models.loading import load_classifier
from tutelage.models.precision import device
from tutelage.rewards.reward import Answers, Reward
from tutelage.settings.rewards import ClassifierReward
from tutelage.terminal import listed, short

BATCH = 32


def classifier_reward(settings: ClassifierReward, name: str) -> Reward:
    """The reward of a classifier's label.

    Raises:
        ValueError: if there is no such classifier, or it has no such label.
    """
    model, tokenizer = load_classifier(settings.model)
    labels = {str(label): number for number, label in model.config.id2label.items()}
    if settings.label not in labels:
        raise ValueError(f"rewards.{name}: {settings.model}: has no label {short(settings.label)}; {listed(labels)}")
    label, one_of_many = int(labels[settings.label]), _one_of_many(model)

    def score(answers: Answers) -> list[float | None]:
        texts = [(_plain(p.text), t) for p, t in zip(answers.prompts, answers.texts, strict=True)]
        logits = _logits(model, tokenizer, texts if settings.reads == "both" else answers.texts)
        if settings.output == "logit":
            return logits[:, label].tolist()
        return (logits.softmax(1) if one_of_many else logits.sigmoid())[:, label].tolist()

    return score


def _one_of_many(model: PreTrainedModel) -> bool:
    """Whether exactly one label holds of a text, so that their probabilities add up to 1."""
    return model.config.num_labels > 1 and model.config.problem_type != "multi_label_classification"


def _plain(text: Text) -> str:
    return text if isinstance(text, str) else "\n\n".join(turn.content for turn in text)


def _positions(model: PreTrainedModel) -> int:
    """How many tokens a classifier can read. RoBERTa's kind counts positions from after the padding token's id."""
    most = getattr(model.config, "max_position_embeddings", None) or 2**31
    taken = (getattr(m, "padding_idx", None) for n, m in model.named_modules() if n.endswith("position_embeddings"))
    return most - max((padding + 1 for padding in taken if padding is not None), default=0)


@torch.inference_mode()
def _logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str] | Sequence[tuple[str, str]]
) -> torch.Tensor:
    """(n, labels) logits; what is longer than the classifier reads is cut at its end."""
    out = torch.empty(len(texts), model.config.num_labels)
    order = sorted(range(len(texts)), key=lambda i: len("".join(texts[i])))
    # A classifier that reads the last token before padding must know it by the same id.
    size = BATCH if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == model.config.pad_token_id else 1
    longest = min(tokenizer.model_max_length, _positions(model))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        encoded = tokenizer(
            [texts[i] for i in rows], padding=size > 1, truncation=True, max_length=longest, return_tensors="pt"
        )
        out[rows] = model(**encoded.to(device())).logits.float().cpu()
    return out
