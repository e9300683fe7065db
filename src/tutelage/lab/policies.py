"""The policies that run folders hold: those along an online run, and those that the runs of a sweep ended with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.runs import done, identity_of, lost_file


@dataclass(frozen=True)
class Point:
    """A policy of a curve: its label, its folder, and of a sweep's the values that its run had."""

    label: str
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> tuple[tuple[str, Any], ...]:
        """The values without the seed, which runs that repeat each other differ in."""
        return tuple((name, value) for name, value in self.settings.items() if name != "seed")


def policies_of(folder: Path) -> tuple[str, list[Point]]:
    """The stage of a finished run, and its policies in order: of `sweep` the `model/` of each run; of `online` those
    kept along the run and the last one; of other stages that make a policy, that one.

    Raises:
        ValueError: if it is no finished run, or has no policy.
    """
    results = done(folder) if (folder / "inputs.json").exists() else None
    if results is None or (lost := lost_file(folder)):
        why = "is no finished run" if results is None else lost
        raise ValueError(f"{folder}: {why}; name the run folder of `online` or `sweep`, once its run is done")
    identity = identity_of(folder)
    stage, settings = identity["stage"], identity["settings"]
    if stage == "sweep":
        runs = results["points"].items()
        points = [Point(name, folder / each["folder"] / "model", each["settings"]) for name, each in runs]
    elif stage == "online":
        last = math.ceil(settings["total_episodes"] / settings["batch_size"])
        kept = {int(path.name.removeprefix("policy-")): path for path in folder.glob("policy-*[0-9]")}
        points = [Point(str(n), path) for n, path in sorted(({last: folder / "last"} | kept).items())]
    else:
        points = [Point(stage, folder / "model")]
    for place in (point.folder for point in points):
        if not any((place / name).exists() for name in ("config.json", "adapter_config.json")):
            raise ValueError(f"{place}: no model there; a curve is of runs that make a policy, not of `{stage}`")
    return stage, points
