"""The best of n: the fixture, brute force, equal scores, and the KL bound."""

from __future__ import annotations

from itertools import combinations
from statistics import fmean

import numpy as np
import pytest

from tutelage.stats.best_of_n import best_of_n, kl_bound, kl_with_ties


def by_hand(proxy: list[float], gold: list[float], n: int) -> float:
    """Every subset of n, and the mean over those of its best that are equally good."""
    values = []
    for chosen in combinations(range(len(proxy)), n):
        most = max(proxy[i] for i in chosen)
        values.append(fmean(gold[i] for i in chosen if proxy[i] == most))
    return fmean(values)


def test_of_four_samples_by_hand() -> None:
    # The best of the six pairs: 2, 0, −1, 2, −1, −1, so 1/6.
    assert best_of_n([0.1, 0.5, 0.3, 0.9], [1, 2, 0, -1], 2)[0] == pytest.approx(1 / 6)
    assert best_of_n([0.1, 0.5, 0.3, 0.9], [1, 2, 0, -1], 1)[0] == pytest.approx(0.5)
    assert best_of_n([0.1, 0.5, 0.3, 0.9], [1, 2, 0, -1], 4)[0] == -1


@pytest.mark.parametrize("n", range(1, 8))
def test_as_all_subsets_have_it(n: int) -> None:
    draw = np.random.default_rng(n)
    proxy, gold = draw.normal(size=(3, 7)), draw.normal(size=(3, 7))
    expected = [by_hand(list(p), list(g), n) for p, g in zip(proxy, gold, strict=True)]
    np.testing.assert_allclose(best_of_n(proxy, gold, n), expected)


def test_equal_scores_are_equally_likely() -> None:
    # Pairs of (1, 1, 1) with gold 0, 3, 6: each is chosen in turn.
    assert best_of_n([1, 1, 1], [0, 3, 6], 2)[0] == pytest.approx(3.0)
    # 2 is best where it is drawn, in 2 of 3 pairs; of the pair of ones either may be: (9 + 9 + 1.5) / 3.
    assert best_of_n([1, 1, 2], [0, 3, 9], 2)[0] == pytest.approx(6.5)


def test_more_than_there_are() -> None:
    with pytest.raises(ValueError, match="n=4 cannot be taken of 3 samples"):
        best_of_n([1, 2, 3], [1, 2, 3], 4)


def test_many_samples_do_not_overflow() -> None:
    scores = np.arange(1, 1001.0)
    # The maximum of n of 1..N has mean n (N + 1) / (n + 1).
    assert best_of_n(scores, scores, 500)[0] == pytest.approx(500 * 1001 / 501)


def test_kl_bound() -> None:
    assert kl_bound(1) == 0
    assert kl_bound(4) == pytest.approx(0.636294, abs=1e-6)


def test_kl_with_ties() -> None:
    scores = np.random.default_rng(0).normal(size=(2, 50))
    for n in (1, 2, 10, 50):
        assert kl_with_ties(scores, n) == pytest.approx([kl_bound(n)] * 2)
    assert kl_with_ties([3, 3, 3], 3) == pytest.approx([0])  # nothing is chosen
    # Two groups of halves: the best of 2 is above with 3/4, and 3/4 log(3/2) + 1/4 log(1/2) = 0.130812.
    assert kl_with_ties([0, 0, 1, 1], 2) == pytest.approx([0.130812], abs=1e-6)
