"""Ratings, length-controlled win rates and what people's ratings come to: by hand, and against other algorithms."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tutelage.data.datasets import write_jsonl
from tutelage.data.judgments import read_judgments
from tutelage.data.sources import DataError
from tutelage.evaluation import preference
from tutelage.settings.evaluation import EvaluateConfig
from tutelage.stats.bradley_terry import PRIOR_SD, Game, ratings
from tutelage.stats.intervals import estimate, wilson
from tutelage.stats.length_control import length_controlled
from tutelage.stats.logistic import fit_logistic, resampled

STRENGTHS = {"a": 0.0, "b": 0.8, "c": -0.6, "d": 1.7}


def tournament(prompts: int, seed: int, pairs: Any = None) -> list[Game]:
    """Every pair on every prompt, won by the models' strengths."""
    rng = np.random.default_rng(seed)
    return [
        Game(i, x, y, float(rng.random() < 1 / (1 + math.exp(STRENGTHS[y] - STRENGTHS[x]))))
        for i in range(prompts)
        for x, y in pairs or combinations(STRENGTHS, 2)
    ]


def minorised(games: list[Game]) -> dict[str, float]:
    """Maximum likelihood by Hunter's algorithm (2004), which is another one, relative to `a`."""
    wins = dict.fromkeys(STRENGTHS, 0.0)
    for game in games:
        wins[game.first] += game.share
        wins[game.second] += 1 - game.share
    worth = dict.fromkeys(STRENGTHS, 1.0)
    for _ in range(2000):
        met = {m: sum(1 / (worth[g.first] + worth[g.second]) for g in games if m in g[1:3]) for m in worth}
        worth = {m: wins[m] / met[m] for m in worth}
    return {m: math.log(worth[m] / worth["a"]) for m in worth}


def test_ratings_are_those_of_maximum_likelihood() -> None:
    games = [g._replace(share=0.5) if i % 7 == 0 else g for i, g in enumerate(tournament(60, 1))]
    games = [Game(g.prompt, g.second, g.first, 1 - g.share) if i % 3 else g for i, g in enumerate(games)]
    ours, theirs = ratings(games, "a", draws=10), minorised(games)
    for model, rating in theirs.items():
        assert ours[model]["mean"] == pytest.approx(rating, abs=0.02)  # the prior draws them together a little
    assert [ours["a"][k] for k in ("mean", "low", "high")] == [0, 0, 0]
    assert (ours["b"]["n"], ours["b"]["prompts"]) == (180, 60)


def test_one_model_beside_another_has_the_log_odds_of_its_wins() -> None:
    """30 of 40, with the prior: θ for b and −θ for a, where 30 − 40 σ(2θ) = θ / 3²."""
    games = [Game(i, "b", "a", float(i < 30)) for i in range(40)]
    theta = ratings(games, "a", draws=10)["b"]["mean"] / 2  # type: ignore[operator]
    assert 30 - 40 / (1 + math.exp(-2 * theta)) == pytest.approx(theta / PRIOR_SD**2, abs=1e-6)
    assert 2 * theta == pytest.approx(math.log(3), abs=0.02)
    turned = [Game(g.prompt, g.second, g.first, 1 - g.share) for g in games]
    for key in ("mean", "low", "high"):
        assert ratings(turned, "a")["b"][key] == pytest.approx(ratings(games, "a")["b"][key])


def test_known_strengths_are_recovered_and_intervals_hold_them() -> None:
    inside = 0
    for seed in range(60):
        for model, rating in ratings(tournament(100, seed), "a", draws=200, seed=seed).items():
            inside += model != "a" and rating["low"] <= STRENGTHS[model] <= rating["high"]  # type: ignore[operator]
    assert 0.9 <= inside / 180 <= 0.99
    large = ratings(tournament(4000, 5), "a", draws=10)
    for model, strength in STRENGTHS.items():
        assert large[model]["mean"] == pytest.approx(strength, abs=0.1)


def test_a_chain_of_comparisons_is_enough() -> None:
    games = tournament(3000, 2, [("a", "b"), ("b", "d"), ("d", "c")])
    for model, strength in STRENGTHS.items():
        assert ratings(games, "a", draws=10)[model]["mean"] == pytest.approx(strength, abs=0.2)


def test_separable_data_stay_finite_and_have_no_invented_interval() -> None:
    """d never lost: only the prior holds it, and resamples, which are all alike, say nothing of how far it may be."""
    games = [g._replace(share=1.0 if g.first == "d" else 0.0) if "d" in g[1:3] else g for g in tournament(50, 3)]
    rated = ratings(games, "a", draws=100)
    assert 3 < rated["d"]["mean"] < 12  # type: ignore[operator]
    assert (rated["d"]["low"], rated["d"]["high"]) == (None, None)
    assert rated["b"]["low"] < rated["b"]["mean"] < rated["b"]["high"]  # type: ignore[operator]
    few = ratings(tournament(29, 3), "a", draws=100)
    assert {(r["low"], r["high"]) for m, r in few.items() if m != "a"} == {(None, None)}
    beside = ratings(games, "d", draws=100)  # nothing can be said beside a model that never lost
    assert beside["b"]["low"] is None


def test_models_that_never_met_are_not_rated() -> None:
    apart = [Game(i, "x", "y", 1.0) for i in range(40)]
    assert set(ratings([*tournament(40, 1), *apart], "a", draws=10)) == set(STRENGTHS)
    with pytest.raises(ValueError, match="'z' was compared with no other model"):
        ratings(tournament(3, 1), "z")


def test_resamples_are_of_prompts() -> None:
    counts = resampled(7, 50, 1)
    assert counts.shape == (50, 7)
    assert (counts.sum(1) == 7).all()
    assert (counts != counts[0]).any()


# Length


def test_without_an_effect_of_length_the_win_rate_stays() -> None:
    """Wins that know nothing of length: 70 of 100 among the longer and among the shorter."""
    wins = [1.0] * 70 + [0.0] * 30
    rate = length_controlled(wins * 2, [50.0] * 100 + [-50.0] * 100, range(200))
    assert rate["mean"] == pytest.approx(0.7, abs=1e-3)
    assert rate["effect"] == pytest.approx(0, abs=1e-6)
    assert (rate["longer"], rate["shorter"], rate["n"], rate["prompts"]) == (0.5, 0.5, 200, 200)
    plain = estimate(wins * 2)
    assert (rate["low"], rate["high"]) == pytest.approx((plain["low"], plain["high"]), abs=0.01)


def test_two_lengths_by_hand() -> None:
    """60 of 80 longer answers win, 2 of 20 shorter ones: Δ/s is ±30 / 24, so θ ± β·tanh(1.25) are the logarithms of
    the odds 3 and 1/9, and θ is their mean."""
    wins = [1.0] * 60 + [0.0] * 20 + [1.0] * 2 + [0.0] * 18
    rate = length_controlled(wins, [30.0] * 80 + [-30.0] * 20, range(100))
    theta = (math.log(3) + math.log(1 / 9)) / 2
    assert rate["mean"] == pytest.approx(1 / (1 + math.exp(-theta)), abs=0.01)
    slope = (math.log(3) - math.log(1 / 9)) / 2 / math.tanh(30 / 24)
    assert rate["effect"] == pytest.approx(slope, abs=0.05)
    assert rate["low"] < rate["mean"] < rate["high"]
    assert rate["mean"] < 0.62  # the plain win rate


def test_a_length_that_is_a_cause_of_winning_is_taken_out() -> None:
    rng = np.random.default_rng(4)
    lengths = rng.normal(200, 300, 4000)
    chance = 1 / (1 + np.exp(-(0.3 + 1.2 * np.tanh(lengths / lengths.std()))))
    wins = (rng.random(4000) < chance).astype(float)
    rate = length_controlled(wins, lengths, range(4000), draws=100)
    assert rate["mean"] == pytest.approx(1 / (1 + math.exp(-0.3)), abs=0.03)
    assert rate["effect"] == pytest.approx(1.2, abs=0.15)
    assert wins.mean() > rate["mean"] + 0.08
    assert rate["low"] < 1 / (1 + math.exp(-0.3)) < rate["high"]


def test_where_it_says_nothing_there_is_no_length_controlled_rate() -> None:
    wins = [1.0, 0.0] * 50
    assert length_controlled(wins, [5.0] * 100, range(100)) == {}
    assert length_controlled(wins, [5.0] * 96 + [-5.0] * 4, range(100)) == {}
    assert length_controlled(wins[:29], [5.0, -5.0] * 14 + [5.0], range(29)) == {}
    assert length_controlled([], [], []) == {}
    won = length_controlled([1.0] * 100, [5.0, -5.0] * 50, range(100))  # separable, and no interval without width
    assert won["mean"] > 0.99
    assert won["low"] < won["high"]


def test_newton_arrives_where_data_are_nearly_separable() -> None:
    """Plain steps go to −1,500 here, and steps of at most one go in circles elsewhere: the gradient must vanish."""
    x = np.array([[1.0, -0.617], [1.0, 0.823], [1.0, -0.994], [1.0, 1.0]])
    totals = np.array([[1e4, 1e4, 100.0, 100.0]])
    rng = np.random.default_rng(0)
    for number in range(200):
        wins = np.array([[9990.0, 1e4, 50.0, 100.0]])
        if number:
            x = np.column_stack([np.ones(4), np.tanh(rng.normal(0, 2, 4))])
            totals = 10.0 ** rng.integers(0, 5, (1, 4))
            wins = totals * rng.choice([0, 0.001, 0.5, 0.999, 1], (1, 4))
        theta = fit_logistic(x, wins, totals, 5.0)
        gradient = (wins - totals / (1 + np.exp(-theta @ x.T))) @ x - theta / 25
        assert np.abs(gradient).max() < 1e-6 * totals.sum()


def test_newton_arrives_from_far_away() -> None:
    x = np.array([[1.0, 0.0], [1.0, 1.0]])
    theta = fit_logistic(x, np.array([[0.0, 1e6]]), np.array([[1e6, 1e6]]), 100.0)
    assert np.isfinite(theta).all()
    p = 1 / (1 + np.exp(-x @ theta[0]))
    gradient = (np.array([0.0, 1e6]) - 1e6 * p) @ x - theta[0] / 100.0**2
    assert np.abs(gradient).max() < 1e-3


# From files


def rated(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    write_jsonl(tmp_path / "j.jsonl", rows)
    config = EvaluateConfig(judgments=str(tmp_path / "j.jsonl"), output=tmp_path / "out", overwrite=True, **settings)
    preference.run(config)
    return json.loads((tmp_path / "out" / "done.json").read_text())


def test_votes_are_counted_by_arm(tmp_path: Path) -> None:
    """A prompt's votes of an arm are averaged before prompts are; who has no arm counts in the whole alone."""
    votes = [
        {"labeler": "t", "arm": "training", "share": 1.0}, {"labeler": "h", "arm": "heldout", "share": 0.0},
        {"labeler": "i", "arm": "heldout", "share": 0.5}, {"labeler": "n", "share": 1.0},
    ]  # fmt: skip
    rows = [
        {"id": "1", "baseline": "sft", "use_case": None, "models": {"ppo": {"votes": votes}}},
        {"id": "2", "baseline": "sft", "use_case": None, "models": {"ppo": {"votes": votes[1:2]}}},
        {"id": "3", "baseline": "sft", "use_case": None, "models": {"ppo": {"votes": 3, "wins": 1.0}}},
    ]
    done = rated(tmp_path, rows)
    assert done["win_rate"]["ppo"]["mean"] == pytest.approx((2.5 / 4 + 0 + 1) / 3)
    arms = done["win_rate_by_arm"]
    assert arms["training"]["ppo"] == {
        "mean": 1.0,
        "n": 1,
        "prompts": 1,
        **dict(zip(("low", "high"), wilson(1, 1), strict=True)),
    }
    assert (arms["heldout"]["ppo"]["mean"], arms["heldout"]["ppo"]["n"]) == (0.125, 2)


def test_what_other_labelers_would_say_comes_with_five_labelers(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = []
    for i in range(60):
        votes = [{"labeler": f"l{k}", "share": float(rng.random() < 0.6)} for k in rng.permutation(6)[:3]]
        rows.append({"id": str(i), "baseline": "sft", "use_case": None, "models": {"ppo": {"votes": votes}}})
    rows.append({"id": "tie", "baseline": "sft", "use_case": None, "models": {"ppo": {"wins": 0.5, "votes": []}}})
    done = rated(tmp_path, rows)
    wide, plain = done["win_rate_for_other_labelers"]["ppo"], done["win_rate"]["ppo"]
    assert wide["mean"] == pytest.approx(plain["mean"])
    assert wide["high"] - wide["low"] > plain["high"] - plain["low"]
    assert (wide["labelers"], wide["prompts"], wide["n"]) == (6, 61, 181)


def ranking(
    prompt: str, labeler: str, ranks: list[int], qualities: list[int], flags: list[list[str]]
) -> dict[str, Any]:
    texts = (("base one", "base"), ("sft says", "sft"), ("ppo", "ppo"))
    return {
        "id": prompt, "prompt": f"text {prompt}", "use_case": "chat", "labeler": labeler, "arm": "heldout",
        "completions": [{"text": t, "policy": p} for t, p in texts], "ranks": ranks,
        "ratings": [{"quality": q, "flags": f} for q, f in zip(qualities, flags, strict=True)],
    }  # fmt: skip


def test_rankings_with_ratings_are_judgments_too(tmp_path: Path) -> None:
    """Two labelers of prompt 1, one of prompt 2: each answer that somebody rated counts once."""
    rows = [
        ranking("1", "x", [3, 2, 1], [1, 4, 7], [["hallucination"], [], []]),
        ranking("1", "y", [2, 2, 1], [3, 4, 5], [[], [], []]),
        ranking("2", "x", [1, 2, 3], [6, 4, 2], [["hallucination", "harmful_advice"], [], ["hallucination"]]),
    ]
    done = rated(tmp_path, rows, baseline="sft")
    means = {n: r["mean"] for n, r in done["likert"].items()}
    assert means == {"base": pytest.approx(10 / 3), "sft": 4.0, "ppo": pytest.approx(14 / 3)}
    assert (done["likert"]["base"]["n"], done["likert"]["base"]["prompts"]) == (3, 2)
    assert 1 <= done["likert"]["base"]["low"] < done["likert"]["base"]["high"] <= 7
    assert {f: {n: r["mean"] for n, r in of.items()} for f, of in done["flags"].items()} == {
        "hallucination": {"base": pytest.approx(2 / 3), "sft": 0, "ppo": pytest.approx(1 / 3)},
        "harmful_advice": {"base": pytest.approx(1 / 3), "sft": 0, "ppo": 0},
    }
    # ppo beats sft twice of three, base loses, ties and wins.
    assert done["win_rate"]["ppo"]["mean"] == pytest.approx(2 / 3)
    assert done["win_rate"]["base"]["mean"] == pytest.approx(1.5 / 3)
    assert done["win_rate_by_arm"]["heldout"]["ppo"]["n"] == 3
    assert set(done["ratings"]) == {"base", "sft", "ppo"}
    assert done["ratings"]["sft"]["mean"] == 0
    assert done["prompts"] == 2


def test_equal_texts_and_several_of_one_policy(tmp_path: Path) -> None:
    """A completion of two policies is a tie between them; a policy's two completions have the mean over the pairs."""
    row = {
        "prompt": "q", "use_case": None, "labeler": "x", "ranks": [1, 2, 3],
        "completions": [
            {"text": "aa", "policy": "ppo"}, {"text": "b", "policy": "ppo, sft"}, {"text": "c", "policy": "base"}
        ],
    }  # fmt: skip
    write_jsonl(tmp_path / "j.jsonl", [row])
    first, second = read_judgments(str(tmp_path / "j.jsonl"), several=True)
    assert (first["baseline"], second["baseline"]) == ("ppo", "sft")
    assert {n: of["wins"] for n, of in first["models"].items()} == {
        "ppo": {}, "sft": {"labelers": (0 + 0.5) / 2}, "base": {"labelers": 0.0}
    }  # fmt: skip
    assert second["models"]["base"]["wins"] == {"labelers": 0.0}
    assert first["models"]["ppo"]["length"] == 1.5


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"ranks": [1, 2]}, r"ranks is \[1, 2\]; expected a rank from 1 for each of 3 completions"),
        ({"ranks": [0, 1, 2]}, "expected a rank from 1"),
        ({"ratings": [{}]}, r"ratings is \[{}\]; expected {quality, flags} for each of 3"),
        ({"completions": ["a", "b", "c"]}, r"completions\[0\] does not say which policy wrote it"),
        ({"ratings": [{"quality": 9}] * 3}, r"models\.\w+\.ratings\.0\.quality: .*less than or equal to 7"),
    ],
)
def test_a_ranking_that_is_no_judgment_is_named(wrong: dict[str, Any], words: str, tmp_path: Path) -> None:
    rows = [ranking("1", "x", [1, 2, 3], [1, 2, 3], [[]] * 3)] * 2
    with pytest.raises(DataError, match=rf"j\.jsonl:2: .*{words}"):
        rated(tmp_path, [rows[0], rows[1] | wrong], baseline="sft")


def test_ratings_come_with_three_models_and_lengths_with_lengths(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        models = {
            name: {"wins": float(rng.random() < p), "length": int(rng.integers(50, 150))}
            for name, p in (("ppo", 0.7), ("dpo", 0.5))
        }
        rows.append({"id": str(i), "baseline": "sft", "use_case": None, "models": {"sft": {"length": 100}, **models}})
    done = rated(tmp_path, rows)
    wins = done["win_rate"]["ppo"]["mean"]
    assert done["ratings"]["ppo"]["mean"] == pytest.approx(math.log(wins / (1 - wins)), abs=0.03)
    assert done["ratings"]["sft"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 120, "prompts": 60}
    rate = done["length_controlled_win_rate"]["ppo"]
    assert abs(rate["mean"] - wins) < 0.05
    assert rate["longer"] + rate["shorter"] > 0.9
    assert set(done["length_controlled_win_rate"]) == {"ppo", "dpo"}
    two = [row | {"models": {name: row["models"][name] for name in ("sft", "ppo")}} for row in rows]
    assert rated(tmp_path, two)["ratings"] == {}


def test_several_files_are_read_as_one(tmp_path: Path) -> None:
    row = {"id": "1", "baseline": "sft", "use_case": None, "models": {"ppo": {"wins": 1.0}}}
    for name, judge in (("a", "people"), ("b", "llm")):
        write_jsonl(tmp_path / f"{name}.jsonl", [row | {"models": {"ppo": {"wins": {judge: 1.0}}}}])
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    preference.run(EvaluateConfig(judgments=files, output=tmp_path / "out"))
    done = json.loads((tmp_path / "out" / "done.json").read_text())
    assert done["judges"] == ["people", "llm"]
    assert (done["win_rate"]["ppo"]["n"], done["llm_win_rate"]["ppo"]["n"]) == (1, 1)


def test_a_file_of_one_model_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "1", "baseline": "sft", "use_case": None, "models": {"sft": {"wins": 0.5, "toxicity": 0.0}}}]
    done = rated(tmp_path, rows)
    assert "no model has won or lost against sft: nobody has compared them" in capsys.readouterr().err
    assert done["warnings"]
    assert (done["toxicity"]["sft"]["n"], done["ratings"]) == (1, {})
