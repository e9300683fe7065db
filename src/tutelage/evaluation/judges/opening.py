"""From settings to judges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tutelage.evaluation.judges.endpoint import EndpointJudges
from tutelage.evaluation.judges.function import FunctionJudges
from tutelage.evaluation.judges.judge import Judge
from tutelage.evaluation.judges.reward_model import RewardModelJudges
from tutelage.settings.judging import EndpointJudge, FunctionJudge, RewardModelJudge, WorldJudge
from tutelage.settings.judging import Judge as Settings

OpenWorld = Callable[[WorldJudge, int], Judge]  # settings and seed


def open_judge(settings: Settings, name: str, state: Path, seed: int, open_world: OpenWorld | None) -> Judge:
    """The judge of these settings.

    Args:
        state: folder of the run for what a resume needs.
        open_world: opens the miniature world's readers, which this room does not know.

    Raises:
        ValueError: naming the judge, if it cannot be opened.
    """
    what = f"judges.{name}"
    match settings:
        case RewardModelJudge():
            return RewardModelJudges(settings.reward_model)
        case FunctionJudge():
            return FunctionJudges(settings, what)
        case EndpointJudge():
            return EndpointJudges(settings, what, state / f"replies-{name}.jsonl")
        case WorldJudge():
            if open_world is None:
                raise ValueError(f"{what}: the miniature world's readers are opened by the command `tutelage judge`")
            return open_world(settings, seed)
