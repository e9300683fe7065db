"""Gao's forms: planted coefficients, optima by hand, the held-out test; the best of several choices."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tutelage.stats.overoptimization import best_choice, coefficients, fit, interval, peak, predicted, terms

N = 2.0 ** np.arange(11)
KL = np.log(N) - (N - 1) / N


def planted(form: str, kl: np.ndarray, alpha: float, beta: float, noise: float, prompts: int = 200) -> np.ndarray:
    """Gold scores (points, prompts) around a curve."""
    d = np.sqrt(kl)
    curve = d * (alpha - beta * (d if form == "best_of_n" else np.log(np.maximum(d, 1e-12))))
    return curve[:, None] + np.random.default_rng(0).normal(0, noise, (len(kl), prompts))


def test_forms_by_hand() -> None:
    # d = 2: 2 (3 − 0.5 · 2) = 4; 2 (3 − 0.5 ln 2) = 5.306853; both 0 at 0.
    assert predicted("best_of_n", [3, 0.5], [0, 2]) == pytest.approx([0, 4])
    assert predicted("rl", [3, 0.5], [0, 2]) == pytest.approx([0, 5.306853], abs=1e-6)
    assert terms("rl", [0.0]).tolist() == [[0.0, 0.0]]


def test_peaks_by_hand() -> None:
    # 2 / (2 · 0.5) = 2 and 4 / (4 · 0.5) = 2; e^(1/0.5 − 1) = e, 0.5 e, and 0 again at e^(1/0.5).
    assert [float(x) for x in peak("best_of_n", [2, 0.5])] == pytest.approx([2, 2])
    assert [float(x) for x in peak("rl", [1, 0.5])] == pytest.approx([math.e, math.e / 2])
    assert predicted("rl", [1, 0.5], [math.e**2]) == pytest.approx([0], abs=1e-9)
    assert [float(x) for x in peak("best_of_n", [2, -0.1])] == [math.inf, math.inf]  # never falls
    assert [float(x) for x in peak("best_of_n", [-1, 0.5])] == [0, 0]  # never rises


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
def test_planted_coefficients_come_back(form: str) -> None:
    kl = KL if form == "best_of_n" else np.linspace(0.2, 60, 12)
    result = fit(form, kl, planted(form, kl, 1.0, 0.3, noise=0.1))  # type: ignore[arg-type]
    for name, truth in (("alpha", 1.0), ("beta", 0.3)):
        assert result[name]["mean"] == pytest.approx(truth, rel=0.05)
        assert result[name]["low"] < truth < result[name]["high"]
    top = 1 / 0.6 if form == "best_of_n" else math.exp(1 / 0.3 - 1)
    assert result["peak"]["d"]["mean"] == pytest.approx(top, rel=0.1)
    assert result["peak"]["share"] == 1
    assert result["peak"]["inside"] == (form == "best_of_n")
    assert result["left_out"] == (form == "best_of_n")  # n = 1 is where R = 0 by definition


def test_the_right_form_predicts_the_rest_better_than_a_line() -> None:
    test = fit("best_of_n", KL, planted("best_of_n", KL, 1.0, 0.4, noise=0.05))["held_out"]
    assert (test["fitted"], test["tested"]) == (5, 5)
    assert test["from_d"] == pytest.approx(math.sqrt(KL[6]))
    assert test["gain"]["low"] > 0
    # The errors, worked with numpy's own solver.
    d, r = np.sqrt(KL[1:]), planted("best_of_n", KL, 1.0, 0.4, noise=0.05)[1:].mean(1)
    (a, b), *_ = np.linalg.lstsq(np.stack([d[:5], -(d[:5] ** 2)], 1), r[:5])
    line = (d[:5] @ r[:5]) / (d[:5] @ d[:5])
    for name, guess in (("error", d[5:] * (a - b * d[5:])), ("line", line * d[5:]), ("last", r[4])):
        assert test[name]["mean"] == pytest.approx(math.sqrt(np.mean((r[5:] - guess) ** 2)))
    assert test["gain"]["mean"] == pytest.approx(
        min(test["line"]["mean"], test["last"]["mean"]) - test["error"]["mean"]
    )


def test_a_line_is_predicted_better_by_a_line() -> None:
    gold = np.sqrt(KL)[:, None] + np.random.default_rng(1).normal(0, 2, (11, 100))
    assert fit("best_of_n", KL, gold)["held_out"]["gain"]["mean"] < 0


def test_kl_that_noise_makes_negative_is_left_out() -> None:
    rng = np.random.default_rng(2)
    kl = np.array([-0.01, 0.5, 1, 2, 4, 8])[:, None] + rng.normal(0, 0.2, (6, 50))
    kl[0] -= kl[0].mean() + 0.01
    result = fit("rl", kl, planted("rl", np.array([0.01, 0.5, 1, 2, 4, 8]), 1, 0.3, 0.05, 50))
    assert (result["points"], result["left_out"]) == (5, 1)
    assert result["held_out"] is None  # five points are too few for three and three
    assert result["alpha"]["mean"] == pytest.approx(1, rel=0.1)


def test_the_order_of_points_does_not_matter() -> None:
    gold = planted("best_of_n", KL, 1.0, 0.3, noise=0.1)
    assert fit("best_of_n", KL[::-1], gold[::-1]) == fit("best_of_n", KL, gold)


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="29 prompts are too few for intervals over prompts; give 30"):
        fit("best_of_n", KL, np.zeros((11, 29)))
    with pytest.raises(ValueError, match="2 points have a KL above 0, and two coefficients need 3"):
        fit("best_of_n", KL[:3], np.zeros((3, 40)))
    flat = fit("best_of_n", KL, np.zeros((11, 40)))  # equal gold scores everywhere
    assert flat["alpha"]["mean"] == pytest.approx(0)
    assert flat["held_out"]["error"]["mean"] == pytest.approx(0)


def test_a_peak_without_end_has_no_number() -> None:
    never = fit("best_of_n", KL, np.sqrt(KL)[:, None] * np.ones((1, 40)) + KL[:, None])
    assert never["peak"]["share"] == 0
    assert never["peak"]["d"] == {"mean": None, "low": None, "high": None}
    assert interval(1.0, [1.0, 1.0, math.inf]) == {"mean": 1.0, "low": 1.0, "high": None}


def test_coefficients_of_many_curves_at_once() -> None:
    d = np.array([[1.0, 2, 3], [1, 4, 9]])
    gold = predicted("rl", [[1, 2], [3, 4]], d)
    np.testing.assert_allclose(coefficients("rl", d, gold), [[1, 2], [3, 4]])


def test_the_best_choice() -> None:
    rng = np.random.default_rng(3)
    gold = np.array([0.0, 1.0, 0.9, -1.0])[:, None] + rng.normal(0, 1, (4, 100))
    result = best_choice(gold, [0, 0.02, 0.06, 0.2])
    assert result["choice"] == gold.mean(1).argmax()
    assert result["shares"][0] == result["shares"][3] == 0
    assert sum(result["shares"]) == pytest.approx(1)
    assert (result["low"], result["high"], result["spans_grid"]) == (0.02, 0.06, False)
    even = best_choice(rng.normal(0, 1, (3, 100)), [0.5, 0, 1])
    assert (even["low"], even["high"], even["spans_grid"]) == (0, 1, True)
    edge = best_choice(np.stack([gold[1], gold[2], gold[0]]), [0, 1, 2])
    assert (edge["low"], edge["high"], edge["spans_grid"]) == (0, 1, False)  # from the least, not to the greatest
    assert "low" not in best_choice(gold)
