"""Bootstrap intervals against what is known by hand."""

from __future__ import annotations

import pytest

from tutelage.intervals import bootstrap


def test_a_constant_has_no_spread() -> None:
    assert bootstrap([0.25] * 7) == {"mean": 0.25, "low": 0.25, "high": 0.25, "n": 7.0}


def test_a_fair_coin_has_the_binomial_interval() -> None:
    found = bootstrap([0.0, 1.0] * 500)
    assert found["mean"] == 0.5
    assert found["low"] == pytest.approx(0.5 - 1.96 * 0.5 / 1000**0.5, abs=0.004)
    assert found["high"] == pytest.approx(0.5 + 1.96 * 0.5 / 1000**0.5, abs=0.004)


def test_a_ratio_weighs_units_by_their_denominators() -> None:
    found = bootstrap([9.0, 0.0], [10.0, 1.0])
    assert found["mean"] == pytest.approx(9 / 11)
    assert found["n"] == 11
    assert (found["low"], found["high"]) == (0.0, 0.9)  # both draws of one unit alone


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [float(i % 3) for i in range(50)]
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
