"""Intervals against what is known by hand, and how often they hold the true value."""

from __future__ import annotations

import os

import numpy as np
import pytest

from tutelage.stats.intervals import between, estimate, for_other_labelers, standard_error, students_t, tail, wilson


def test_a_fair_coin_has_the_binomial_interval() -> None:
    found = estimate([0.0, 1.0] * 500)
    assert found["mean"] == 0.5
    assert found["low"] == pytest.approx(0.5 - 1.96 * 0.5 / 1000**0.5, abs=0.004)
    assert found["high"] == pytest.approx(0.5 + 1.96 * 0.5 / 1000**0.5, abs=0.004)
    assert (found["n"], found["prompts"]) == (1000, 1000)


def test_wilson_as_published() -> None:
    # Newcombe 1998 (Statistics in Medicine 17, 857), table I: 81/263, 15/148, 0/20, 1/29
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611),
                                    (1, 29, 0.0061, 0.1718)):  # fmt: skip
        assert wilson(successes / n, n) == pytest.approx((low, high), abs=5e-5)
    # Stretched to [-1, 1], as for a difference of two rates: 2 x - 1
    assert wilson(-1.0, 20, (-1, 1)) == pytest.approx((-1, 2 * 0.1611 - 1), abs=1e-4)


def test_few_prompts_or_rare_outcomes_never_give_an_interval_without_width() -> None:
    for values in ([1.0], [1.0] * 29, [1.0] * 500, [0.0] * 500, [0.5] * 7, [1.0] * 300 + [0.0] * 4):
        found = estimate(values)
        assert (found["low"], found["high"]) == wilson(sum(values) / len(values), len(values))
        assert found["low"] < found["high"]
    # Five prompts of 300 on either side, and the bootstrap has something to draw.
    assert estimate([1.0] * 295 + [0.0] * 5)["high"] == pytest.approx(0.9967, abs=0.002)
    for n in (4, 40):  # a difference that is always zero is at no end of its scale
        same = estimate([0.0] * n, scale=(-1, 1))
        assert (same["low"], same["high"]) == wilson(0.0, n, (-1, 1))


def test_a_ratio_weighs_prompts_by_their_denominators() -> None:
    found = estimate([9.0, 0.0], [10.0, 1.0])
    assert found["mean"] == pytest.approx(9 / 11)
    assert (found["n"], found["prompts"]) == (11, 2)
    # One prompt holds nearly all: the effective number is 11² / (10² + 1²) of prompts, not two.
    assert (found["low"], found["high"]) == wilson(9 / 11, 121 / 101)


def test_what_is_seen_of_one_prompt_is_one_unit() -> None:
    once = estimate([1.0, 0.0] * 20)
    thrice = estimate([1.0, 0.0] * 60, prompts=[f"{i % 40}" for i in range(120)])
    assert (thrice["n"], thrice["prompts"]) == (120, 40)
    assert [thrice[k] for k in ("mean", "low", "high")] == [once[k] for k in ("mean", "low", "high")]


def test_the_percentile_is_that_of_students_t() -> None:
    """t for 29 degrees of freedom is 2.04523 in every table, and 2.04523 · √(30/29) = 2.08019; Φ of its negative."""
    assert tail(30) == pytest.approx(0.018754, abs=2e-5)
    assert tail(31) > tail(30)
    assert tail(10**6) == pytest.approx(0.025, abs=1e-5)
    assert tail(29) == 0.025


EXPERIMENTS = int(os.environ.get("TUTELAGE_COVERAGE", "400"))  # 2,000 tell 95 % from 96.5 %


def nested(rng: np.random.Generator, prompts: int, labelers: int, like: float = 1) -> np.ndarray:
    """(labelers, prompts) votes; prompts differ in how often they are won, less where they are more `like`."""
    chance = rng.beta(0.65 * like, 0.35 * like, prompts)
    return (rng.random((labelers, prompts)) < chance).astype(float)


def inside_both_ways(votes: np.ndarray, rng: np.random.Generator, draws: int = 300) -> bool:
    """Whether an interval holds the true rate if labelers, too, are resampled inside the resampled prompts."""
    labelers, prompts = votes.shape
    picks = rng.integers(prompts, size=(draws, 1, prompts))
    drawn = votes[rng.integers(labelers, size=(draws, labelers, prompts)), picks].mean((1, 2))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return bool(low <= 0.65 <= high)


@pytest.mark.parametrize(("prompts", "like"), [(12, 1), (30, 1), (80, 1), (80, 10)])
def test_coverage_where_labelers_are_nested_in_prompts(prompts: int, like: float) -> None:
    rng = np.random.default_rng(prompts)
    inside = votes_as_units = both_ways = 0
    for _ in range(EXPERIMENTS):
        votes = nested(rng, prompts, 3, like)
        outcomes, of = votes.ravel(), list(np.tile(np.arange(prompts), 3))
        ours = estimate(outcomes, prompts=of, draws=500)
        inside += ours["low"] <= 0.65 <= ours["high"]
        if like == 1:
            wrong = estimate(outcomes, draws=500)
            votes_as_units += wrong["low"] <= 0.65 <= wrong["high"]
        else:
            both_ways += inside_both_ways(votes, rng)
    share = inside / EXPERIMENTS
    print(f"{prompts} prompts, like {like}: {share:.4f}; both ways {both_ways / EXPERIMENTS:.4f}")
    noise = 3 * (0.95 * 0.05 / EXPERIMENTS) ** 0.5 if EXPERIMENTS < 2000 else 0.0
    assert share >= 0.935 - noise  # more where prompts are few: Wilson's interval is on the safe side
    if prompts >= 30:
        assert share <= 0.965 + noise
    if like == 1:
        assert votes_as_units / EXPERIMENTS < 0.88
    else:  # labelers' noise is counted twice
        assert both_ways / EXPERIMENTS > 0.97


def test_students_t_as_in_every_table() -> None:
    for degrees, t in ((4, 2.776), (7, 2.365), (11, 2.201), (29, 2.045), (100, 1.984)):
        assert students_t(degrees) == pytest.approx(t, abs=0.01)


def test_two_ways_by_hand() -> None:
    """Five labelers, of whom the first wins always and the others never, each on all of 30 prompts: every prompt has
    0.2, so all variance is theirs: 5/4 · ((0.8/5)² + 4·(0.2/5)²) less that of single votes."""
    votes = [float(labeler == 0) for _ in range(30) for labeler in range(5)]
    of = [(prompt, labeler) for prompt in range(30) for labeler in range(5)]
    rate = for_other_labelers(votes, [p for p, _ in of], [w for _, w in of])
    single = (30 * 0.8**2 + 120 * 0.2**2) / 150**2
    reach = students_t(4) * (1.25 * ((0.8 / 5) ** 2 + 4 * (0.2 / 5) ** 2) - single) ** 0.5
    assert rate == {
        "mean": pytest.approx(0.2), "low": 0, "high": pytest.approx(0.2 + reach), "n": 150, "prompts": 30, "labelers": 5
    }  # fmt: skip
    assert for_other_labelers(votes[:145], [p for p, _ in of[:145]], [w for _, w in of[:145]]) == {}  # 29 prompts
    # A tie of equal answers on 30 other prompts is nobody's: it adds prompts alone.
    ties = for_other_labelers(
        [*votes, *[0.2] * 30], [*(p for p, _ in of), *range(30, 60)], [*(w for _, w in of), *[None] * 30]
    )
    assert (ties["mean"], ties["prompts"], ties["labelers"]) == (pytest.approx(0.2), 60, 5)
    assert ties["high"] - 0.2 == pytest.approx(reach / 2)
    assert for_other_labelers([1.0] * 40, range(40), [i % 4 for i in range(40)]) == {}  # four labelers


@pytest.mark.parametrize(("prompts", "lean"), [(60, 0.0), (300, 0.08)])
def test_coverage_where_labelers_differ_in_taste(prompts: int, lean: float) -> None:
    """Eight labelers, three votes a prompt: the interval over prompts alone does not hold what others would say."""
    rng = np.random.default_rng(prompts)
    wide = narrow = 0
    for _ in range(EXPERIMENTS):
        taste = rng.normal(0, lean, 8)
        who = rng.random((prompts, 8)).argsort(1)[:, :3]
        chance = np.clip(rng.beta(6.5, 3.5, prompts)[:, None] + taste[who], 0, 1)
        votes = (rng.random((prompts, 3)) < chance).astype(float)
        of = [i for i in range(prompts) for _ in range(3)]
        ours, plain = for_other_labelers(votes.ravel(), of, list(who.ravel())), estimate(votes.mean(1), draws=200)
        wide += ours["low"] <= 0.65 <= ours["high"]
        narrow += plain["low"] <= 0.65 <= plain["high"]
    print(f"{prompts} prompts, lean {lean}: {wide / EXPERIMENTS:.4f}; over prompts alone {narrow / EXPERIMENTS:.4f}")
    assert wide / EXPERIMENTS >= 0.9
    if lean:
        assert narrow / EXPERIMENTS < 0.8


def test_a_statistic_that_is_no_ratio_follows_the_same_rule() -> None:
    drawn = np.linspace(0.2, 0.6, 1001)
    assert between(0.4, drawn, 10**9, 50) == pytest.approx((0.21, 0.59))
    assert between(0.4, drawn, 50, 50) == pytest.approx((0.2 + 0.4 * tail(50), 0.6 - 0.4 * tail(50)))
    assert between(0.4, drawn, 10, 10) == wilson(0.4, 10, (-1, 1))
    assert between(1.0, np.ones(100), 50, 50) == wilson(1.0, 50, (-1, 1))


def test_standard_error_is_of_prompts() -> None:
    assert standard_error([1.0, 2.0, 4.0], "abc") == pytest.approx(np.std([1, 2, 4], ddof=1) / 3**0.5)
    assert standard_error([1.0, 1.0, 2.0, 2.0], "aabb") == pytest.approx(np.std([1, 2], ddof=1) / 2**0.5)
    assert standard_error([1.0, 2.0], "aa") is None
    assert standard_error([1.0], "a") is None


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [float(i) / 50 for i in range(50)]
    assert estimate(values, seed=3) == estimate(values, seed=3)
    assert estimate(values, seed=3) != estimate(values, seed=4)
