"""Short answers against references: exact match and F1 as SQuAD v2 and DROP define them.

Sources: Rajpurkar et al. 2018 (`evaluate-v2.0.py`) and Dua et al. 2019 (`drop_eval.py`), which this follows in what is
lowered, stripped and split. Differs from DROP's script: F1 is not rounded to two digits.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from itertools import permutations

import numpy as np

ARTICLE = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = frozenset(string.punctuation)
Score = dict[str, float]  # "exact_match" and "f1", from 0 to 1


def squad_normal(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space."""
    kept = "".join(c for c in text.lower() if c not in PUNCTUATION)
    return " ".join(ARTICLE.sub(" ", kept).split())


def squad_f1(sample: str, reference: str) -> float:
    """F1 of the two bags of normalised tokens; where one is empty, 1 if both are."""
    ours, theirs = squad_normal(sample).split(), squad_normal(reference).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def squad_scores(sample: str, references: Sequence[str]) -> Score:
    """The best exact match and the best F1 over the references; without any, an empty sample is right.

    As in the published script, a reference that normalises to nothing does not count beside others.
    """
    answers = [r for r in references if squad_normal(r)] or [""]
    return {
        "exact_match": float(max(squad_normal(sample) == squad_normal(r) for r in answers)),
        "f1": max(squad_f1(sample, r) for r in answers),
    }


# DROP


def _number(token: str) -> float | None:
    try:
        return float(token)
    except ValueError:
        return None


def drop_normal(text: str) -> str:
    """Tokens split at spaces and hyphens, each lower case, without articles and, unless it is a number, punctuation;
    numbers as Python writes floats."""
    words = []
    for token in re.split("[ -]", text.lower()):
        bare = token if _number(token) is not None else "".join(c for c in token if c not in PUNCTUATION)
        value = _number(bare)
        words += ARTICLE.sub(" ", str(value) if value is not None else bare).split()
    return " ".join(words)


def _bag_f1(ours: set[str], theirs: set[str]) -> float:
    common = len(ours & theirs)
    precision = common / len(ours) if ours else 1.0
    recall = common / len(theirs) if theirs else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _pair_f1(ours: set[str], theirs: set[str]) -> float:
    """F1 of two bags; 0 if the reference has numbers and the sample none of them."""
    numbers = {word for word in theirs if _number(word) is not None}
    return _bag_f1(ours, theirs) if not numbers or numbers & ours else 0.0


def best_assignment(gains: np.ndarray) -> float:
    """The largest sum of gains (n, m) over one-to-one assignments of rows to columns.

    Answers of a few spans are tried out one by one; longer ones go by shortest augmenting paths (Jonker and Volgenant
    1987), in O(n²m).
    """
    rows = gains if gains.shape[0] <= gains.shape[1] else gains.T
    n, m = rows.shape
    if math.perm(m, n) <= 720:
        return max((float(sum(rows[i, j] for i, j in enumerate(p))) for p in permutations(range(m), n)), default=0.0)
    cost = np.zeros((n + 1, m + 1))
    cost[1:, 1:] = -rows
    u, v, owner = np.zeros(n + 1), np.zeros(m + 1), np.zeros(m + 1, dtype=int)
    for row in range(1, n + 1):
        owner[0], column = row, 0
        least, before, used = np.full(m + 1, np.inf), np.zeros(m + 1, dtype=int), np.zeros(m + 1, dtype=bool)
        while owner[column]:
            used[column] = True
            free = np.flatnonzero(~used)
            reduced = cost[owner[column], free] - u[owner[column]] - v[free]
            closer = reduced < least[free]
            least[free[closer]], before[free[closer]] = reduced[closer], column
            nearest = free[np.argmin(least[free])]
            step = least[nearest]
            u[owner[used]] += step
            v[used] -= step
            least[~used] -= step
            column = int(nearest)
        while column:
            owner[column] = owner[before[column]]
            column = int(before[column])
    return float(sum(-cost[owner[j], j] for j in range(1, m + 1) if owner[j]))


def drop_pair(sample: Sequence[str], reference: Sequence[str]) -> Score:
    """Exact match of two lists of spans, and mean F1 of their best one-to-one alignment; a span left over counts 0."""
    ours, theirs = [drop_normal(s) for s in sample], [drop_normal(r) for r in reference]
    exact = float(set(ours) == set(theirs) and len(ours) == len(theirs))
    bags = [set(text.split()) for text in ours], [set(text.split()) for text in theirs]
    gains = np.array([[_pair_f1(mine, yours) for mine in bags[0]] for yours in bags[1]])
    return {"exact_match": exact, "f1": best_assignment(gains) / max(len(ours), len(theirs))}


def drop_scores(sample: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """The best exact match and the best F1 over the references, each a list of spans.

    As in the published script, a reference whose first span is empty does not count.

    Raises:
        ValueError: if no reference counts.
    """
    pairs = [drop_pair(sample or [""], r) for r in references if r and r[0].strip()]
    if not pairs:
        raise ValueError("DROP has no questions without an answer; give a reference")
    return {measure: max(pair[measure] for pair in pairs) for measure in ("exact_match", "f1")}
