"""A reward model as a judge: the answer with the higher score wins, equal scores tie."""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.evaluation.judges.judge import Pair, Share
from tutelage.models.precision import full_precision
from tutelage.rewards.reward_model import RewardModel


class RewardModelJudges:
    """The judge that a reward model is. It reads texts in its own template, each as one that ended by itself.

    Raises:
        ValueError: as `load_scalar` does.
    """

    def __init__(self, folder: str) -> None:
        self.about = f"the reward model {folder}"
        self._model = RewardModel(folder)

    def compare(self, pairs: Sequence[Pair]) -> list[Share]:
        """Who scores higher; None where an answer is longer than the model's context."""
        number = len(pairs)
        prompts = [prompt for prompt, _, _ in pairs] * 2
        texts = [first for _, first, _ in pairs] + [second for _, _, second in pairs]
        encoded = self._model.encode(prompts, texts, [True] * len(texts))
        fit = [max(len(encoded[i]), len(encoded[number + i])) <= self._model.context for i in range(number)]
        kept = [i for i in range(number) if fit[i]]
        with full_precision():
            scores = self._model.scores([encoded[i] for i in kept] + [encoded[number + i] for i in kept]).tolist()
        shares: list[Share] = [None] * number
        for i, mine, theirs in zip(kept, scores[: len(kept)], scores[len(kept) :], strict=True):
            shares[i] = 0.5 if mine == theirs else float(mine > theirs)
        return shares
