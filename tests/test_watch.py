"""What goes wrong without an error is said once, in words, and the same after a resume; what is usual is not."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from transformers import PreTrainedTokenizerBase

from tutelage.runs import Run
from tutelage.training.guards import (
    RECENT,
    RULES,
    START,
    Row,
    Watch,
    dead_value,
    flat,
    lengthened,
    narrowed,
    off_sampler,
    outside,
    parted,
    runaway,
    spike,
    vanished,
)


def losses(*values: float | None) -> list[dict[str, float | None]]:
    return [{"loss/train": value} for value in values]


def test_a_spike_is_far_above_what_a_loss_was() -> None:
    """Median 2.0, typical deviation 1.4826 * 0.1: the line is at 3.48, or at twice the median, 4, whichever is more."""
    usual = [1.9, 2.1, 2.0, 1.9, 2.1] * 5
    assert spike(losses(*usual, 4.0), "loss/train") is None
    warning = spike(losses(*usual, 4.01), "loss/train")
    assert warning is not None
    assert warning.startswith("loss/train jumped to 4.01 from about 2;")
    wide = [1.0, 2.0, 3.0, 1.0, 3.0] * 5  # deviation 1.4826: the line is at 16.8
    assert spike(losses(*wide, 16.8), "loss/train") is None
    assert spike(losses(*wide, 16.9), "loss/train") is not None
    assert spike(losses(*usual[:19], 100.0), "loss/train") is None  # too few to say
    assert spike(losses(*usual, None), "loss/train") is None  # not the value before it
    assert spike([], "loss/train") is None


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("loss/train", "lower optimizer.learning_rate"), ("loss/ptx", "lower optimizer.learning_rate"),
        ("loss/value", "lower algorithm.value_learning_rate"),
    ],
)  # fmt: skip
def test_every_loss_with_a_scale_is_watched(name: str, remedy: str) -> None:
    rows: list[dict[str, float | None]] = [{name: 0.1}] * 25
    assert not any(rule(rows) for rule in RULES.values())
    (warning,) = filter(None, (rule([*rows, {name: 0.21}]) for rule in RULES.values()))
    assert warning.startswith(f"{name} jumped to 0.21 from about 0.1;")
    assert remedy in warning


def test_noise_is_no_spike() -> None:
    rng = Random(0)
    for scale in (0.01, 0.3):
        rows = losses(*(3 / (1 + step / 50) + rng.gauss(0, scale) for step in range(400)))
        assert not any(spike(rows[:n], "loss/train") for n in range(len(rows)))


def test_a_gradient_has_vanished_after_ten_updates() -> None:
    rows: list[dict[str, float | None]] = [{"grad_norm": 1e-7}] * 10
    assert "the gradient has vanished" in (vanished(rows) or "")
    assert vanished(rows[:9]) is None
    assert vanished([*rows[:9], {"grad_norm": 1e-3}]) is None


def test_kl_runs_away_by_the_token() -> None:
    far: list[dict[str, float | None]] = [{"objective/kl": 31.0, "objective/length": 30.0}] * 5
    assert "31.0 nats on completions of 30 tokens" in (runaway(far) or "")
    assert runaway(far[:4]) is None
    assert runaway([*far, {"objective/kl": 29.0, "objective/length": 30.0}]) is None
    for bad in ({"objective/kl": None}, {"objective/kl": 31.0, "objective/length": 0.0}, {"objective/length": 1.0}):
        assert runaway([*far[:3], bad, far[3]]) is None  # four that say something
        assert runaway([bad, *far[:3], bad, *far[3:]]) == runaway(far)


def test_a_value_model_that_explains_nothing_is_dead() -> None:
    rows: list[dict[str, float | None]] = [{"val/explained_variance": -0.1}] * 40
    assert "explains nothing of the returns (explained variance -0.10" in (dead_value(rows) or "")
    assert dead_value(rows[:39]) is None  # the first iterations are to learn in
    assert dead_value([*rows[:20], *[{"val/explained_variance": 0.1}] * 20]) is None
    assert dead_value([{"val/explained_variance": None}] * 40) is None


def test_it_is_said_once_kept_and_the_same_after_a_resume(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [2.0, 2.1] * 12 + [9.0, 2.0, 9.0]
    (tmp_path / "inputs.json").touch()
    run = Run("sft", tmp_path)
    watch = Watch(run, tokenizer)
    for step, value in enumerate(values):
        watch.reads(step, [[5, 6, 7], [8, step + 10]])
        watch.look(run.log(step, {"loss/train": value}))
    (warning,) = run.warnings
    assert warning.startswith("step 24: loss/train jumped to 9 from about 2.05;")
    assert capsys.readouterr().err == f"sft: warning: {warning}\n"
    kept = [json.loads(line) for line in (tmp_path / "batch-24.jsonl").read_text().splitlines()]
    assert [row["ids"] for row in kept] == [[5, 6, 7], [8, 34]]
    assert [row["text"] for row in kept] == [tokenizer.decode(ids) for ids in ([5, 6, 7], [8, 34])]
    assert [p.name for p in tmp_path.glob("batch-*")] == ["batch-24.jsonl"]
    again = Run("sft", tmp_path)
    Watch(again, tokenizer)
    assert again.warnings == run.warnings
    assert capsys.readouterr().err == ""


def test_samples_of_another_policy() -> None:
    low = [{"sampler/ess": 0.89}] * 5
    assert "effective sample size is 89% of their number" in (off_sampler(low) or "")
    assert off_sampler(low[:4]) is None
    assert off_sampler([*low, {"sampler/ess": 0.91}]) is None


def test_groups_without_a_signal_are_named() -> None:
    rows = [{"objective/flat_groups": share} for share in (0.2, 1.0, 1.0, 0.96, 1.0)]
    assert flat(rows) is None
    assert flat(rows[1:]) is None  # four are too few
    assert "completions of 97% of the prompts all have one score" in str(flat([*rows, {"objective/flat_groups": 0.97}]))


def judged(proxy: list[float], heldout: list[float]) -> list[Row]:
    return [
        {"objective/scores": a, "objective/heldout_scores": b} for a, b in zip(proxy, heldout, strict=True)
    ]  # fmt: skip


def test_scores_part_where_one_rises_and_the_other_falls() -> None:
    """Halves of 10, their values 0.1 apart by turns: s = .0527, standard error of a difference .0236, three .0707."""
    wave = [0.0, 0.1] * 10
    up = [value + 0.08 * (i >= 10) for i, value in enumerate(wave)]
    down = [value - 0.08 * (i >= 10) for i, value in enumerate(wave)]
    assert (parted(judged(up, down)) or "").startswith(
        "the reward rises and the held-out score falls: over 20 iterations from 0.05 to 0.13, and from 0.05 to -0.03."
    )
    far = [value + 9.0 * (i >= 10) for i, value in enumerate(wave)]
    assert parted(judged(far, [-value for value in far])) is not None
    assert parted(judged(far[:19], [-value for value in far[:19]])) is None
    assert parted(judged(up, wave)) is None
    assert parted(judged(wave, down)) is None
    assert parted(judged(down, up)) is None
    slower = [value - 0.06 * (i >= 10) for i, value in enumerate(wave)]
    assert parted(judged(up, slower)) is None
    assert parted([{"objective/scores": float(i)} for i in range(80)]) is None  # nobody else judges
    missing: list[Row] = [{"objective/scores": 9.0}, {"objective/scores": None, "objective/heldout_scores": 1.0}]
    assert parted([*judged(up, down)[:10], *missing, *judged(up, down)[10:]]) == parted(judged(up, down))


def test_slow_parting_is_seen_over_the_longer_window() -> None:
    rng = Random(0)
    proxy = [i / 400 + rng.gauss(0, 0.05) for i in range(RECENT)]
    heldout = [-i / 400 + rng.gauss(0, 0.05) for i in range(RECENT)]
    assert "over 64 iterations" in (parted(judged(proxy, heldout)) or "")


def test_the_noise_of_prompts_is_no_parting() -> None:
    """The same prompts are hard for both judges; and both rise, or one stays."""
    rng = Random(0)
    for drift in (0.0, 0.02):
        for _ in range(20):
            hard = [rng.gauss(0, 0.3) for _ in range(100)]
            rows = judged([h + 0.02 * i for i, h in enumerate(hard)],
                          [h + drift * i + rng.gauss(0, 0.1) for i, h in enumerate(hard)])  # fmt: skip
            assert not any(parted(rows[:n]) for n in range(len(rows)))


def test_length_that_doubles() -> None:
    rows: list[Row] = [{"objective/length": length} for length in (9.0, 10.0, 11.0, 10.0, 10.0)]
    long: list[Row] = [{"objective/length": 20.0, "objective/ended": 0.9}] * 5
    warning = lengthened([*rows, *long]) or ""
    assert warning.startswith(
        "completions run away in length: from 10 tokens at the start to 20, and 10% of them are cut"
    )
    assert lengthened([*rows, *long[:4]]) is None
    assert lengthened([*rows, *long[:4], {"objective/length": 19.9}]) is None
    assert "cut off" not in (lengthened([*rows, *[{"objective/length": 20.0, "objective/ended": 1.0}] * 5]) or "")


def test_entropy_that_is_lost() -> None:
    rows: list[Row] = [{"objective/entropy": 0.4}] * 5
    assert "entropy collapses: from 0.4 nats a token at the start to 0.1," in (
        narrowed([*rows, *[{"objective/entropy": 0.1}] * 5]) or ""
    )
    assert narrowed([*rows, *[{"objective/entropy": 0.1}] * 4]) is None
    assert narrowed([*rows, *[{"objective/entropy": 0.1}] * 4, {"objective/entropy": 0.101}]) is None


def test_kl_beyond_what_was_ranked() -> None:
    far: list[Row] = [{"objective/kl": 9.1, "objective/kl_covered": 9.0}] * 5
    assert "KL from the reference is 9.1 nats a completion, and of all ranked completions the best is at most 9.0" in (
        outside(far) or ""
    )
    assert outside(far[:4]) is None
    assert outside([*far, {"objective/kl": 9.0, "objective/kl_covered": 9.0}]) is None
    assert outside([{"objective/kl": 99.0}] * 5) is None  # nothing says what the reward model learned from


def test_the_start_is_remembered_however_long_the_run(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (tmp_path / "inputs.json").touch()
    run = Run("online", tmp_path)
    watch = Watch(run, tokenizer)
    for step in range(START + 2 * RECENT):  # it grows so slowly that no recent row is half as long
        watch.look(run.log(step, {"objective/length": 10.0 if step < START else 15.0 if step < 2 * RECENT else 20.0}))
    (warning,) = run.warnings
    assert warning.startswith(f"step {2 * RECENT + 4}: completions run away in length: from 10 tokens")
    again = Run("online", tmp_path)
    Watch(again, tokenizer)
    assert again.warnings == run.warnings
