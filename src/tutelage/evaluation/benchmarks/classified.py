"""Texts scored from 0 to 1 by a classifier: a folder, an endpoint or a function, as rewards have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage.data.records import Prompt
from tutelage.evaluation.benchmarks.protocol import Generation, Item
from tutelage.files import fingerprint
from tutelage.rewards.classifier import classifier_reward
from tutelage.rewards.endpoint import endpoint_reward
from tutelage.rewards.function import function_reward, sources_of
from tutelage.rewards.reward import Answers, Reward
from tutelage.settings.benchmarks import BenchmarkConfig
from tutelage.settings.rewards import ClassifierReward, EndpointReward, FunctionReward
from tutelage.terminal import short

NAME = "classifier"


def classifier_inputs(config: BenchmarkConfig) -> dict[str, Path]:
    """The folder or the source file that the scores depend on; none of an endpoint."""
    match config.scorer:
        case ClassifierReward() as folder:
            return {NAME: Path(folder.model)}
        case FunctionReward() as function:
            return sources_of({NAME: function})
    return {}


def described(config: BenchmarkConfig) -> dict[str, Any]:
    """What scored, for the results: its settings' words, and the sha256 of what lies on this machine."""
    if config.scorer is None:
        return {}
    hashes = [fingerprint(path) for path in classifier_inputs(config).values()]
    label = {"label": config.classifier_label} if isinstance(config.scorer, ClassifierReward) else {}
    return {"kind": config.scorer.name, NAME: config.classifier, "sha256": hashes[0] if hashes else None, **label}


def open_classifier(config: BenchmarkConfig) -> Reward | None:
    """The classifier as a reward, None if none is set.

    Raises:
        ValueError: if it cannot be opened.
    """
    match config.scorer:
        case ClassifierReward() as folder:
            return classifier_reward(folder, NAME)
        case FunctionReward() as function:
            return function_reward(function, NAME)
        case EndpointReward() as endpoint:
            return endpoint_reward(endpoint, NAME)
    return None


def classify(
    reward: Reward, items: Sequence[Item], responses: Sequence[Sequence[dict[str, Any]]]
) -> list[list[list[Any]]]:
    """Of each item and each of its asks the texts' scores; None of an empty text, which is not sent.

    Raises:
        ValueError: if the classifier fails, gives no score for a text, or one that is not from 0 to 1.
    """
    rows = [
        (Prompt(id=item.id, text=asked.text), text)
        for item, own in zip(items, responses, strict=True)
        for asked, response in zip(item.asks, own, strict=True)
        if isinstance(asked, Generation)
        for text in response["texts"]
    ]
    sent = [row for row in rows if row[1].strip()]
    texts = [text for _, text in sent]
    scores = reward(Answers([p for p, _ in sent], texts, [True] * len(sent), [[] for _ in sent])) if sent else []
    for text, value in zip(texts, scores, strict=True):
        if value is None or not 0 <= value <= 1:
            raise ValueError(
                f"{NAME}: gave {short(value)} for {short(text)}; expected a number from 0 to 1. The texts are kept; "
                "the same command goes on from them"
            )
    left = iter(scores)
    return [
        [[next(left) if text.strip() else None for text in response["texts"]] for response in own] for own in responses
    ]
