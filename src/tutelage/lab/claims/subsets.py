"""The rankings that the claims' reward models learn from: nested subsets, shuffled pairs, and folds of labelers."""

from __future__ import annotations

from random import Random

from tutelage.data.datasets import read_rankings, write_jsonl
from tutelage.data.records import Ranking
from tutelage.runs import inputs_of, open_run
from tutelage.settings.claims import SubsetsConfig


def group_of(labelers: list[str], folds: int) -> dict[str, int]:
    """The group of each labeler, by name in turn, as cards are dealt."""
    return {name: place % folds for place, name in enumerate(sorted(labelers))}


def shuffled_pairs(rankings: list[Ranking], rng: Random) -> list[Ranking]:
    """All ordered pairs of the rankings, each a ranking of two, in any order."""
    pairs = [
        r.model_copy(update={"completions": (r.completions[i], r.completions[j]), "ranks": (1, 2)})
        for r in rankings
        for i, j in r.pairs
    ]
    rng.shuffle(pairs)
    return pairs


def run(config: SubsetsConfig) -> None:
    """Write `first_N.jsonl` for each size, `pairs.jsonl`, and `fold_K.jsonl` for each group of labelers.

    Raises:
        ValueError: if there are fewer rankings than are asked for, or a ranking names no labeler.
    """
    opened = open_run("subsets", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    rankings = list(read_rankings(config.rankings).records)
    labelers = [r.labeler for r in rankings if r.labeler is not None]
    if len(labelers) < len(rankings):
        raise ValueError(f"{config.rankings}: a ranking names no labeler, so it belongs to no fold; add `labeler`")
    opened.begin(f"{len(rankings):,} rankings by {len(set(labelers))} labelers")
    Random(f"subsets/{config.seed}").shuffle(rankings)
    for size in config.sizes:
        write_jsonl(opened.folder / f"first_{size}.jsonl", rankings[:size])
    pairs = shuffled_pairs(rankings[: config.pairs_of], Random(f"pairs/{config.seed}"))
    write_jsonl(opened.folder / "pairs.jsonl", pairs)
    group = group_of(list(set(labelers)), config.folds)
    some = rankings[: config.fold_rankings]
    for fold in range(config.folds):
        write_jsonl(opened.folder / f"fold_{fold}.jsonl", [r for r in some if group[str(r.labeler)] != fold])
    opened.finish(rankings=len(rankings), pairs=len(pairs), group=group)
