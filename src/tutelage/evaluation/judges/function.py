"""A Python function as a judge: `f(prompts, first, second, **columns) -> list[share | {labeler: share} | None]`.

Prompts, answers and columns come as they come to reward functions.
"""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.evaluation.judges.judge import Pair, Share, checked_shares
from tutelage.rewards.function import as_completion, as_given, call, columns_for, columns_wanted, load_function
from tutelage.settings.judging import FunctionJudge

OWN = ("prompts", "first", "second")


class FunctionJudges:
    """The judge that a function is.

    Raises:
        ValueError: opened by `what`, if there is no such function, or it does not take prompts and two answers.
    """

    def __init__(self, settings: FunctionJudge, what: str) -> None:
        self.about = f"the function {settings.function}"
        self._what = f"{what}: {settings.function}"
        self._seconds = settings.timeout_seconds
        self._function = load_function(settings.function, self._what)
        self._wanted = columns_wanted(self._function, OWN, self._what)

    def compare(self, pairs: Sequence[Pair]) -> list[Share]:
        """What the function says of the pairs."""
        prompts = [prompt for prompt, _, _ in pairs]
        lists = (
            [as_given(p) for p in prompts],
            [as_completion(p, text) for p, text, _ in pairs],
            [as_completion(p, text) for p, _, text in pairs],
        )
        columns = columns_for(prompts, self._wanted, OWN, self._what)
        arguments = {**dict(zip(OWN, lists, strict=True)), **columns}
        return checked_shares(call(self._function, arguments, self._seconds, self._what), len(pairs), self._what)
