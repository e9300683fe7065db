"""Agreement between labelers on the same completions: pure functions of rankings.

The paper reports 72.6 ± 1.5 % between training labelers without a formula; agreement on the pairs that both labelers
ordered strictly is its likeliest reading and the headline here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from tutelage.intervals import bootstrap
from tutelage.records import Ranking


def pairwise_agreement(rankings: Sequence[Ranking], seed: int = 0, draws: int = 1000) -> dict[str, float]:
    """Share of completion pairs, ordered strictly by two labelers of the same prompt, that both order alike.

    Returns `mean`, a 95 % bootstrap interval over prompts (`low`, `high`), and the number of `pairs`; all zero where no
    prompt has two labelers.
    """
    by_prompt: dict[str, list[Ranking]] = defaultdict(list)
    for r in rankings:
        by_prompt[r.prompt.id].append(r)
    counts = []
    for group in by_prompt.values():
        alike = total = 0
        for a, b in combinations(group, 2):
            first = {(a.completions[i].text, a.completions[j].text) for i, j in a.pairs}
            for i, j in b.pairs:
                pair = b.completions[i].text, b.completions[j].text
                if pair in first or pair[::-1] in first:
                    alike, total = alike + (pair in first), total + 1
        if total:
            counts.append((alike, total))
    if not counts:
        return {"mean": 0.0, "low": 0.0, "high": 0.0, "pairs": 0}
    rate = bootstrap([a for a, _ in counts], [t for _, t in counts], draws, seed)
    return {"mean": rate["mean"], "low": rate["low"], "high": rate["high"], "pairs": rate["n"]}
