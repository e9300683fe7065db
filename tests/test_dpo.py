"""DPO against its formulas, written out: the loss, whole steps from rankings of any K, and where it ends."""

from __future__ import annotations

import json
import math
import re
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import byhand
from byhand import AdamW, Interruption, assert_same_steps, ids, write
from tutelage.models import forward
from tutelage.objectives.dpo import preference_loss
from tutelage.runs import DryRun, done
from tutelage.settings.dpo import DpoConfig
from tutelage.stages import dpo

RANKINGS: list[dict[str, Any]] = [
    {"prompt": "c d", "completions": [" a", " b i", " j"], "ranks": [2, 1, 1]},  # two pairs, and a tie
    {"prompt": "e", "completions": [" h h a", " g"], "ranks": [1, 2]},
    {"prompt": "f g h", "completions": [" a", " b", " c d", " e f g"], "ranks": [3, 1, 4, 2]},  # six pairs
]
COMMON: dict[str, Any] = {
    "learning_rate": 0.03, "weight_decay": 0.1, "betas": (0.8, 0.9), "epsilon": 0.01, "max_grad_norm": 1e6,
}  # fmt: skip


def sigmoid_loss(margin: float, beta: float, smoothing: float) -> float:
    return (1 - smoothing) * math.log1p(math.exp(-beta * margin)) + smoothing * math.log1p(math.exp(beta * margin))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_by_hand(smoothing: float) -> None:
    """The first is preferred to the second and the third, which tie: two pairs."""
    ratios, ranks = torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64), torch.tensor([1, 2, 2])
    loss = preference_loss(ratios, ranks, 0.5, "sigmoid", smoothing)
    assert float(loss) == pytest.approx((sigmoid_loss(-2, 0.5, smoothing) + sigmoid_loss(3, 0.5, smoothing)) / 2)
    assert float(preference_loss(ratios, ranks, 0.5, "ipo")) == pytest.approx(((-2 - 1) ** 2 + (3 - 1) ** 2) / 2)


def test_what_is_equal_costs_ln_2_and_an_all_tied_ranking_nothing() -> None:
    ratios = torch.zeros(3, requires_grad=True)
    assert float(preference_loss(ratios.detach(), torch.tensor([1, 2, 3]), 0.1)) == pytest.approx(math.log(2))
    loss = preference_loss(ratios, torch.tensor([1, 1, 1]), 0.1)
    loss.backward()
    assert float(loss.detach()) == 0
    assert ratios.grad is not None
    assert (ratios.grad == 0).all()


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_the_gradient_by_finite_differences(loss: Any) -> None:
    ratios = torch.tensor([0.3, -1.2, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    ranks, smoothing = torch.tensor([2, 1, 3, 2]), 0.2 if loss == "sigmoid" else 0.0
    assert torch.autograd.gradcheck(lambda x: preference_loss(x, ranks, 0.7, loss, smoothing), ratios)


def test_it_reaches_the_optimal_policy() -> None:
    """On a softmax over six, labeled by Bradley-Terry with infinite data: π* ∝ π_ref · exp(r/β), within 0.02 nats."""
    g, beta = torch.Generator().manual_seed(0), 0.5
    ref, r = torch.randn(6, generator=g).log_softmax(0), torch.randn(6, generator=g)
    optimum = (ref + r / beta).log_softmax(0)
    logits = ref.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    assert float((ref.exp() * (ref - optimum)).sum()) > 0.2
    for _ in range(600):
        ratios = logits.log_softmax(0) - ref
        loss = torch.zeros(())
        for w, x in permutations(range(6), 2):  # each pair as often as it is ranked so
            pair = preference_loss(ratios[[w, x]], torch.tensor([1, 2]), beta)
            loss = loss + torch.sigmoid(r[w] - r[x]) * pair
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = logits.detach().log_softmax(0)
    assert float((found.exp() * (found - optimum)).sum()) < 0.02


def config(policy: Path, output: Path, **changes: Any) -> DpoConfig:
    """All rankings an update; files lie beside the output."""
    rankings = write(output.with_name("rankings.jsonl"), RANKINGS)
    values = {"rankings": rankings, "valid_rankings": rankings, "beta": 0.4, "batch_size": 3, "epochs": 3, "seed": 3}
    return DpoConfig(output=output, model=str(policy), **(values | byhand.grouped(COMMON) | changes))


def sums(policy: Any, ranking: dict[str, Any]) -> Tensor:
    """(k,) log π of each completion, its end included."""
    prompt = ids(ranking["prompt"])
    return torch.stack([byhand.logprobs(policy, prompt, ids(f"{c} <end>")).sum() for c in ranking["completions"]])


@pytest.mark.parametrize(("kind", "tokens"), [("llama", 1), ("llama", 1000), ("gpt2", 30)])
@pytest.mark.parametrize(("loss", "smoothing"), [("sigmoid", 0.0), ("ipo", 0.0), ("sigmoid", 0.2)])
def test_whole_steps(kind: str, tokens: int, loss: str, smoothing: float, tmp_path: Path) -> None:
    """Three epochs of one update each, from rankings of two, three and four, whatever the micro-batches."""
    folder = byhand.make(kind, tmp_path / "policy", dropout=0.5)
    with byhand.steps_taken() as steps:
        changes = {"loss": loss, "label_smoothing": smoothing, "micro_batch_tokens": tokens}
        dpo.run(config(folder, tmp_path / "out", **changes))
    policy, reference = byhand.policy_of(folder), byhand.policy_of(folder)
    adam, expected, rows = AdamW(policy, COMMON), [], byhand.metrics(tmp_path / "out")
    with torch.no_grad():
        known = [sums(reference, r) for r in RANKINGS]
    for t in range(3):
        losses, right, pairs, margin = [], 0.0, 0, 0.0
        for ranking, ref in zip(RANKINGS, known, strict=True):
            ratios, each = sums(policy, ranking) - ref, []
            for w, x in permutations(range(len(ref)), 2):
                if ranking["ranks"][w] < ranking["ranks"][x]:
                    h = ratios[w] - ratios[x]
                    right_label, wrong_label = torch.log1p(torch.exp(-0.4 * h)), torch.log1p(torch.exp(0.4 * h))
                    mixed = (1 - smoothing) * right_label + smoothing * wrong_label
                    each.append((h - 1 / 0.8) ** 2 if loss == "ipo" else mixed)
                    right, pairs = right + (0.5 if t == 0 else float(h > 0)), pairs + 1
                    margin += 0.4 * h.item()
            losses.append(sum(each) / len(each))
        total = sum(losses) / 3
        total.backward()  # type: ignore[union-attr]
        rate = 0.03 * (0.1 + 0.9 * (1 + math.cos(math.pi * t / 3)) / 2) * min(1.0, (t + 1) / 10)
        step, norm = adam.step(rate)
        expected.append(step)
        wanted = {"loss/train": total.item(), "grad_norm": norm, "learning_rate": rate}
        if t:  # before, all margins are 0 but for rounding
            wanted |= {"accuracy/train": right / pairs, "preference/margin": margin / pairs}
        assert {name: rows[t][name] for name in wanted} == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert_same_steps(steps, expected)
    byhand.assert_saved(tmp_path / "out" / "model", policy)
    byhand.assert_run_of(tmp_path / "out", "dpo", "model", "rankings", "valid_rankings")
    results = done(tmp_path / "out")
    assert results is not None
    assert results["rankings"] == results["valid"]["rankings"] == 3
    assert results["valid"]["pairs"] == 9
    assert results["valid"]["prompts"] == 3
    # The measure, of the policy as it is in the end, by the same formulas.
    losses, right = [], 0
    for ranking, ref in zip(RANKINGS, known, strict=True):
        with torch.no_grad():
            ratios, each = (sums(policy, ranking) - ref).tolist(), []
        for w, x in permutations(range(len(ref)), 2):
            if ranking["ranks"][w] < ranking["ranks"][x]:
                h = ratios[w] - ratios[x]
                each.append((h - 1 / 0.8) ** 2 if loss == "ipo" else sigmoid_loss(h, 0.4, smoothing))
                right += h > 0
        losses.append(sum(each) / len(each))
    assert results["valid"]["loss"] == pytest.approx(sum(losses) / 3, rel=1e-4)
    assert results["valid"]["accuracy"] == pytest.approx(right / 9)
    assert 0 < results["valid"]["low"] < results["valid"]["accuracy"] <= results["valid"]["high"] <= 1


def test_it_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reference of the start, which the policy has left by then."""
    folder = byhand.make("llama", tmp_path / "policy")
    dpo.run(config(folder, tmp_path / "whole"))
    real, calls = dpo.update, []

    def update(*args: Any) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise Interruption
        return real(*args)

    monkeypatch.setattr(dpo, "update", update)
    parts = config(folder, tmp_path / "parts", checkpoint_seconds=1e-9)
    with pytest.raises(Interruption):
        dpo.run(parts)
    dpo.run(parts)
    whole, after = (byhand.policy_of(tmp_path / name / "model") for name in ("whole", "parts"))
    for a, b in zip(whole.parameters(), after.parameters(), strict=True):
        assert_close(a, b, rtol=0, atol=0)
    assert done(tmp_path / "parts")["valid"] == done(tmp_path / "whole")["valid"]  # type: ignore[index]


def test_it_says_what_it_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of rankings that were held out; and if their prompts were trained on, that too."""
    folder = byhand.make("llama", tmp_path / "policy")
    pairs = [{"prompt": p, "chosen": " a", "rejected": " b"} for p in ("c", "d", "e", "f")]
    file = write(tmp_path / "pairs.jsonl", pairs)
    for name, changes, words in (
        ("apart", {"valid_rankings": None, "held_out": 0.25}, "1 pairs in order (1 prompts), where a policy that has"),
        ("same", {"valid_rankings": file}, "0.50; but 4 of its 4 prompts are among those trained on"),
        ("none", {"valid_rankings": None, "held_out": 0}, "nothing was held out, so nothing says what it learned"),
    ):
        dpo.run(config(folder, tmp_path / name, rankings=file, **changes))
        assert words in capsys.readouterr().err, name
        assert (done(tmp_path / name) or {})["prompts_trained_on"] == (4 if name == "same" else 0)


def test_pairs_are_read_and_mistakes_named(tmp_path: Path) -> None:
    folder = byhand.make("llama", tmp_path / "policy")
    pairs = [{"prompt": p, "chosen": " a", "rejected": " b"} for p in ("c", "d", "e", "f")]
    file = write(tmp_path / "pairs.jsonl", pairs)
    dpo.run(config(folder, tmp_path / "out", rankings=file, valid_rankings=None, held_out=0.25))
    results = done(tmp_path / "out")
    assert results is not None
    assert (results["rankings"], results["valid"]["prompts"]) == (3, 1)
    long = write(tmp_path / "long.jsonl", RANKINGS[2:])
    with pytest.raises(ValueError, match=r"^rankings: .*long.jsonl: no ranking is left \(1 too long\)"):
        dpo.run(config(folder, tmp_path / "long", max_prompt_tokens=1, rankings=long))
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1 belongs to loss=sigmoid; leave it out of ipo"):
        config(folder, tmp_path / "x", loss="ipo", label_smoothing=0.1)


def test_what_is_too_long_is_dropped_and_counted(tmp_path: Path) -> None:
    """Prompts of four tokens and completions that fill the context of sixteen stay; one more of either does not."""
    folder, eleven = byhand.make("llama", tmp_path / "policy"), " a" * 11
    rows = [
        {"prompt": "a b c d", "completions": [" b", eleven], "ranks": [1, 2]},  # 4 + 11 + an end
        {"prompt": "a b c d e", "completions": [" b", " a"], "ranks": [1, 2]},
        {"prompt": "b a c d", "completions": [eleven + " a", " b"], "ranks": [1, 2]},
        {"prompt": "c", "completions": [" a", " b"], "ranks": [2, 1]},
    ]
    train, valid = write(tmp_path / "train.jsonl", rows), write(tmp_path / "valid.jsonl", rows[1:])
    common = {"rankings": train, "max_prompt_tokens": 4, "epochs": 1}
    dpo.run(config(folder, tmp_path / "own", **common, valid_rankings=valid))
    results = done(tmp_path / "own") or {}
    assert results["rankings"] == 2
    assert (results["valid"]["rankings"], results["valid"]["pairs"]) == (1, 1)
    assert results["dropped"] == {"too long": 2, "too long in valid_rankings": 2}
    dpo.run(config(folder, tmp_path / "share", **common, valid_rankings=None, held_out=0.5))
    results = done(tmp_path / "share") or {}
    assert results["rankings"] + results["valid"].get("rankings", 0) == 2
    assert results["dropped"] == {"too long": 2}
    dpo.run(config(folder, tmp_path / "all", **common, valid_rankings=None, held_out=0))
    results = done(tmp_path / "all") or {}
    assert (results["rankings"], results["valid"]) == (2, {})
    long = write(tmp_path / "long.jsonl", rows[1:2])
    with pytest.raises(ValueError, match=r"^valid_rankings: .*long.jsonl: no ranking is left"):
        dpo.run(config(folder, tmp_path / "no", **common, valid_rankings=long))


def test_a_batch_of_one_pair_has_its_own_accuracy(tmp_path: Path) -> None:
    folder = byhand.make("llama", tmp_path / "policy")
    one = write(tmp_path / "one.jsonl", RANKINGS[1:2])
    dpo.run(config(folder, tmp_path / "out", rankings=one, batch_size=1))
    rows = byhand.metrics(tmp_path / "out")
    assert [row["accuracy/train"] for row in rows[1:]] == [1, 1]
    assert rows[2]["loss/train"] == pytest.approx(math.log1p(math.exp(-rows[2]["preference/margin"])), rel=1e-4)


def test_rankings_of_one_prompt_are_no_independent_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for the interval nor when some are held out; both are functions of the seed."""
    folder = byhand.make("llama", tmp_path / "policy")
    rows = [{**RANKINGS[1], "prompt": prompt} for prompt in ("c", "c", "d", "e", "f")]
    twice = write(tmp_path / "twice.jsonl", rows)
    estimates, splits = [], []
    real_estimate, real_split = dpo.estimate, dpo.hold_out
    monkeypatch.setattr(dpo, "estimate", lambda *a, **k: estimates.append((a, k)) or real_estimate(*a, **k))
    monkeypatch.setattr(dpo, "hold_out", lambda *a: splits.append(a) or real_split(*a))
    dpo.run(config(folder, tmp_path / "file", valid_rankings=twice))
    results = done(tmp_path / "file") or {}
    assert (results["valid"]["rankings"], results["valid"]["prompts"], results["valid"]["pairs"]) == (5, 4, 5)
    assert not splits
    dpo.run(config(folder, tmp_path / "share", rankings=twice, valid_rankings=None, held_out=0.5, seed=5))
    ((_, groups, share, seed),) = splits
    assert (groups, share, seed) == (["c", "c", "d", "e", "f"], 0.5, 5)
    assert [k["seed"] for _, k in estimates] == [3, 5]
    assert estimates[0][1]["prompts"] == groups
    assert estimates[0][0][1] == [1] * 5


def test_the_plan_says_what_will_be_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = byhand.make("llama", tmp_path / "policy")
    with pytest.raises(DryRun):
        dpo.run(config(folder, tmp_path / "out", batch_size=2, dry_run=True))
    plan = capsys.readouterr().err
    assert "3 rankings to train on, 3 held out" in plan
    assert re.search(r"(?<![-.\d])6 updates of 2 rankings, 3 passes", plan)
    dpo.run(config(folder, tmp_path / "out", batch_size=2))
    assert len(byhand.metrics(tmp_path / "out")) == 6


def test_an_adapter_starts_as_its_seed_says(tmp_path: Path) -> None:
    """Its first matrix is drawn at random and the second is 0, so a gradient's norm tells one seed from another."""
    folder, norms = byhand.make("llama", tmp_path / "policy"), []
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        dpo.run(config(folder, tmp_path / name, epochs=1, seed=seed, adapter={"rank": 2}))
        norms.append(byhand.metrics(tmp_path / name)[0]["grad_norm"])
    assert norms[0] == norms[1] != pytest.approx(norms[2], rel=1e-3)


@pytest.mark.parametrize("size", [1, 3])
def test_what_has_not_moved_has_no_margin(size: int, tmp_path: Path) -> None:
    """Also where training rounds to bf16, and reads one ranking where the reference was read for three at once: both
    are rounded alike."""
    dpo.run(config(Path("base"), tmp_path / "out", epochs=1, batch_size=size))
    row = byhand.metrics(tmp_path / "out")[0]
    assert row["loss/train"] == pytest.approx(math.log(2), abs=1e-6)
    assert row["preference/margin"] == pytest.approx(0, abs=1e-6)


def test_a_ranking_is_read_as_one_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prompt once: in the reference, in every update and in the measure."""
    real, read = forward.hidden_at, []

    def hidden_at(model: Any, batch: Any, *args: Any) -> Tensor:
        read.append(int(batch.flat().ids.numel()))
        return real(model, batch, *args)

    monkeypatch.setattr(forward, "hidden_at", hidden_at)
    dpo.run(config(byhand.make("llama", tmp_path / "policy"), tmp_path / "out", epochs=1))
    once = sum(len(ids(r["prompt"])) + sum(len(ids(f"{c} <end>")) for c in r["completions"]) for r in RANKINGS)
    assert sum(read) == 4 * once  # two of them are reference


def test_a_gradient_that_is_no_number_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the second of three updates: the checkpoint before it stays, and the batch is kept as it was read."""
    real = dpo.update

    def update(optimizer: Any, model: Any, max_norm: float, rate: float, watch: Any) -> float:
        if watch.step == 1:
            next(model.parameters()).grad[0] = torch.nan
        return real(optimizer, model, max_norm, rate, watch)

    monkeypatch.setattr(dpo, "update", update)
    folder, output = byhand.make("llama", tmp_path / "policy"), tmp_path / "out"
    with pytest.raises(ValueError, match=r"^dpo: the gradient is nan at step 1; .*learning_rate"):
        dpo.run(config(folder, output, checkpoint_seconds=1e-9))
    assert json.loads((output / "state" / "counters.json").read_text())["step"] == 1
    kept = [json.loads(line) for line in (output / "batch-1.jsonl").read_text().splitlines()]
    wanted = [ids(f"{r['prompt']}{c} <end>") for r in RANKINGS for c in r["completions"]]
    assert sorted(row["ids"] for row in kept) == sorted(wanted)
    assert kept[0]["text"].split() == [byhand.WORDS[i] for i in kept[0]["ids"]]
    assert done(output) is None


def test_a_loss_that_jumps_is_warned_of_and_a_measure_that_is_no_number_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = byhand.make("llama", tmp_path / "policy"), dpo.backward
    often = {"epochs": 22, "valid_rankings": None, "held_out": 0}
    losses = iter([0.69] * 21 + [99.0])
    monkeypatch.setattr(dpo, "backward", lambda *a: real(*a) | {"loss/train": next(losses)})
    dpo.run(config(folder, tmp_path / "jump", **often))
    assert "step 21: loss/train jumped to 99" in str((done(tmp_path / "jump") or {})["warnings"])
    monkeypatch.setattr(dpo, "backward", real)
    monkeypatch.setattr(dpo, "evaluate", lambda *_: {"loss": math.inf})
    with pytest.raises(ValueError, match=r"^dpo: the loss on held-out rankings is inf, so training has diverged"):
        dpo.run(config(folder, tmp_path / "inf", epochs=1))
    assert done(tmp_path / "inf") is None
