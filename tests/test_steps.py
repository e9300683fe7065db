"""Whole steps of reward training and of supervised fine-tuning against the formulas, written out (see `byhand`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import PreTrainedModel

import byhand
from byhand import KINDS, WIDTH, AdamW, Interruption, Step, assert_same_steps, assert_saved, ids, write
from tutelage.data.records import Request, Sample
from tutelage.runs import done
from tutelage.sampling.local import LocalSampler
from tutelage.settings.reward import RewardConfig
from tutelage.settings.sft import SftConfig
from tutelage.stages import reward, sft

COMMON: dict[str, Any] = {
    "learning_rate": 0.03, "weight_decay": 0.1, "betas": (0.8, 0.9), "epsilon": 0.01, "max_grad_norm": 1e6,
}  # fmt: skip
RANKINGS: list[dict[str, Any]] = [
    {"prompt": "c d", "completions": [" a", " b i", " j"], "ranks": [2, 1, 1]},  # two pairs, and a tie
    {"prompt": "e", "completions": [" h h a", " g"], "ranks": [1, 2]},
    {"prompt": "f g h", "completions": [" a", " b", " c d", " e f g"], "ranks": [3, 1, 4, 2]},  # six pairs
]
DEMONSTRATIONS = [
    {"prompt": "d", "completion": " a b"},
    {"prompt": "c d e", "completion": " f"},
    {"prompt": "h", "completion": " i j b a"},
]


def sequences(ranking: dict[str, Any]) -> list[list[int]]:
    return [ids(f"{ranking['prompt']}{text} <end>") for text in ranking["completions"]]


def ranking_loss(model: PreTrainedModel, ranking: dict[str, Any]) -> tuple[Tensor, int, int]:
    """−mean over pairs that are not tied of log σ(r_w − r_l), how many pairs are in order, and how many there are."""
    scores = [byhand.score(model, sequence) for sequence in sequences(ranking)]
    ranks = ranking["ranks"]
    margins = [scores[w] - scores[x] for w in range(len(ranks)) for x in range(len(ranks)) if ranks[w] < ranks[x]]
    loss = sum(torch.log(1 + torch.exp(-m)) for m in margins) / len(margins)
    return loss, sum(m.item() > 0 for m in margins), len(margins)  # type: ignore[return-value]


def cosine_to_a_tenth(step: int, total: int) -> float:
    return 0.1 + 0.9 * (1 + math.cos(math.pi * step / total)) / 2


def trained_reward_model(
    start: Sequence[Tensor], folder: Path, plan: Sequence[Sequence[int]], s: dict[str, Any], warmup: int
) -> tuple[PreTrainedModel, list[Step], list[dict[str, float]]]:
    """A reward model after these minibatches of rankings, from these weights."""
    model = byhand.scalar_of(folder)
    with torch.no_grad():
        for p, value in zip(model.parameters(), start, strict=True):
            p.copy_(value)
    adam, steps, logged = AdamW(model, s), [], []
    for t, members in enumerate(plan):
        losses, right, pairs = zip(*[ranking_loss(model, RANKINGS[m]) for m in members], strict=True)
        loss = sum(losses) / len(members)
        loss.backward()
        rate = s["learning_rate"] * cosine_to_a_tenth(t, len(plan)) * min(1.0, (t + 1) / warmup)
        step, norm = adam.step(rate)
        steps.append(step)
        accuracy = sum(right) / sum(pairs)
        logged.append({"loss/train": loss.item(), "accuracy/train": accuracy, "grad_norm": norm, "learning_rate": rate})
    return model, steps, logged


@pytest.mark.parametrize(
    ("kind", "micro_batch_tokens", "max_grad_norm"), [("llama", 1, 1e6), ("gpt2", 1, 0.05), ("gpt2", 1000, 1e6)]
)
def test_reward_training(kind: str, micro_batch_tokens: int, max_grad_norm: float, tmp_path: Path) -> None:
    """Three rankings in batches of two: a step on two rankings, then one on the third; two epochs."""
    s = COMMON | {"max_grad_norm": max_grad_norm}
    policy = byhand.make(kind, tmp_path / "policy")
    rankings = write(tmp_path / "rankings.jsonl", RANKINGS)
    with byhand.steps_taken() as steps:
        reward.run(
            RewardConfig(
                output=tmp_path / "out", model=str(policy), rankings=rankings, valid={"held_out": rankings},
                demonstrations=write(tmp_path / "demonstrations.jsonl", DEMONSTRATIONS), epochs=2, batch_size=2,
                micro_batch_tokens=micro_batch_tokens, seed=3, **byhand.grouped(s | {"warmup_steps": 3}),
            )
        )  # fmt: skip
    byhand.assert_run_of(tmp_path / "out", "reward", "model", "rankings", "valid.held_out", "demonstrations")
    # It begins with the policy's weights and a new head.
    given = load_file(policy / "model.safetensors")
    for (name, _), weight in zip(byhand.scalar_of(policy).named_parameters(), steps[0].before, strict=True):
        if name != "score.weight":
            assert torch.equal(weight, given[name])
    assert steps[0].of_scalar
    # Which rankings come together is left to chance; the losses that were logged tell which did.
    rows = byhand.metrics(tmp_path / "out")
    assert len(rows) == 4
    plan: list[tuple[int, ...]] = []
    for _ in range(2):
        orders = [[*plan, o[:2], o[2:]] for o in permutations(range(3)) if o[0] < o[1]]
        tried = [trained_reward_model(steps[0].before, policy, [*p, *[(0,)] * (4 - len(p))], s, 3) for p in orders]
        at = len(plan)
        fits = [abs(logged[at]["loss/train"] - rows[at]["loss/train"]) for _, _, logged in tried]
        plan = orders[fits.index(min(fits))]
    model, expected, logged = trained_reward_model(steps[0].before, policy, plan, s, 3)
    for row, wanted in zip(rows, logged, strict=True):
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert_same_steps(steps, expected)
    assert_centred(tmp_path / "out", model)


@torch.no_grad()
def assert_centred(folder: Path, trained: PreTrainedModel) -> None:
    """Demonstrations' saved scores average 0; all other weights, and differences of scores, are as trained."""
    saved, results = byhand.scalar_of(folder / "model"), done(folder)
    assert results is not None
    demonstrations = [ids(f"{d['prompt']}{d['completion']} <end>") for d in DEMONSTRATIONS]
    before, after = (torch.stack([byhand.score(m, x) for x in demonstrations]) for m in (trained, saved))
    assert after.mean().item() == pytest.approx(0, abs=1e-5)
    assert results["offset"] == pytest.approx(before.mean().item(), abs=1e-5)
    every = [*demonstrations, *[x for r in RANKINGS for x in sequences(r)]]
    shifts = torch.stack([byhand.score(trained, x) - byhand.score(saved, x) for x in every])
    assert results["offset_residual"] == pytest.approx(shifts.std().item(), rel=1e-2, abs=1e-5)
    # The shift lies along u, the best fit of h · u = 1 over all final states h, scaled to be right for demonstrations.
    states = torch.stack([trained.base_model(torch.tensor([x])).last_hidden_state[0, -1] for x in every]).double()
    gram = states.T @ states
    ridge = 1e-6 * gram.diagonal().mean()  # for states that lie in a plane, as GPT-2's do
    u = torch.linalg.inv(gram + ridge * torch.eye(WIDTH)) @ states.sum(0)
    u = u / (states[: len(demonstrations)] @ u).mean()
    moved = (trained.score.weight - saved.score.weight)[0].double()
    torch.testing.assert_close(moved, before.mean() * u, rtol=1e-2, atol=1e-3)
    for (name, a), b in zip(saved.named_parameters(), trained.parameters(), strict=True):
        if name != "score.weight":
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)
    # What the run says of the held-out rankings, recomputed from the model that was saved.
    losses, right, pairs = zip(*[ranking_loss(saved, r) for r in RANKINGS], strict=True)
    held_out = results["valid"]["held_out"]
    assert held_out["loss"] == pytest.approx(float(sum(losses)) / 3, abs=1e-5)
    assert held_out["accuracy"] == pytest.approx(sum(right) / sum(pairs))
    assert (held_out["pairs"], held_out["rankings"]) == (sum(pairs), 3) == (9, 3)
    assert held_out["calibration"] == calibration(saved)
    assert 0 <= held_out["low"] <= held_out["accuracy"] <= held_out["high"] <= 1


def calibration(model: PreTrainedModel) -> list[list[float]]:
    """Pairs by how sure the model is, in steps of 5 %: mean probability of its favourite, how often it won, number."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for ranking in RANKINGS:
        scores, ranks = [byhand.score(model, x).item() for x in sequences(ranking)], ranking["ranks"]
        for w, x in permutations(range(len(ranks)), 2):
            if ranks[w] < ranks[x]:
                sure = 1 / (1 + math.exp(-abs(scores[w] - scores[x])))
                bins.setdefault(min(9, int((sure - 0.5) / 0.05)), []).append((sure, scores[w] > scores[x]))
    return [
        pytest.approx([sum(c for c, _ in b) / len(b), sum(won for _, won in b) / len(b), len(b)], abs=2e-4)
        for _, b in sorted(bins.items())
    ]


def reward_config(policy: Path, output: Path, **changes: Any) -> RewardConfig:
    """Three steps of one ranking each; files lie beside the output."""
    rankings = write(output.with_name("rankings.jsonl"), RANKINGS)
    values = {"rankings": rankings, "valid": {"held_out": rankings}, "batch_size": 1, "seed": 3, **COMMON, **changes}
    return RewardConfig(output=output, model=str(policy), **byhand.grouped(values))


def test_reward_training_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    policy = byhand.make("llama", tmp_path / "policy")
    with byhand.steps_taken() as whole:
        reward.run(reward_config(policy, tmp_path / "whole"))

    def interrupt(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if len(parts) == 2:  # the model has moved, and nothing of it is saved
            raise Interruption

    config = reward_config(policy, tmp_path / "parts", checkpoint_seconds=1e-9)
    with byhand.steps_taken() as parts:
        hook = register_optimizer_step_post_hook(interrupt)
        with pytest.raises(Interruption):
            reward.run(config)
        hook.remove()
        reward.run(config)
        reward.run(config)  # a finished run is left alone
    del parts[1]
    assert_same_steps(parts, whole)
    a, b = (byhand.metrics(tmp_path / name) for name in ("parts", "whole"))
    assert [row["loss/train"] for row in a] == pytest.approx([row["loss/train"] for row in b])
    # Without demonstrations nothing is shifted: the last step's weights are the model's.
    results = done(tmp_path / "parts")
    assert results is not None
    assert "offset" not in results
    saved = byhand.scalar_of(tmp_path / "parts" / "model")
    for weight, last in zip(saved.parameters(), whole[-1].after, strict=True):
        torch.testing.assert_close(weight.detach(), last)


def test_a_sure_reward_model_is_calibrated_too(tmp_path: Path) -> None:
    """States a thousand times as large make large margins: the last step of calibration takes in certainty itself."""
    policy = byhand.make("llama", tmp_path / "policy")
    weights = load_file(policy / "model.safetensors")
    save_file(weights | {"model.norm.weight": 1000 * weights["model.norm.weight"]}, policy / "model.safetensors")
    reward.run(reward_config(policy, tmp_path / "out", learning_rate=1e-12))
    results = done(tmp_path / "out")
    assert results is not None
    found = results["valid"]["held_out"]["calibration"]
    with torch.no_grad():
        assert found == calibration(byhand.scalar_of(tmp_path / "out" / "model"))
    assert found[-1][0] > 0.99


def test_the_order_of_rankings_depends_on_the_seed_alone(tmp_path: Path) -> None:
    policy = byhand.make("llama", tmp_path / "policy")
    orders = []
    for name, seed in (("one", 3), ("two", 3), *((f"other{k}", k) for k in range(4, 9))):
        reward.run(reward_config(policy, tmp_path / name, seed=seed, learning_rate=1e-12, max_grad_norm=1e-9))
        with torch.no_grad():  # a model that does not move: a loss says which ranking it was
            model = byhand.scalar_of(tmp_path / name / "model")
            found = [ranking_loss(model, r) for r in RANKINGS]
        rows = byhand.metrics(tmp_path / name)
        orders.append(
            [min(range(3), key=lambda k, row=row: abs(found[k][0].item() - row["loss/train"])) for row in rows]
        )
        right = [found[k][1] / found[k][2] for k in orders[-1]]
        assert [row["accuracy/train"] for row in rows] == pytest.approx(right)
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert orders[0] == orders[1]
    assert len(set(map(tuple, orders))) > 1


def test_what_does_not_fit_is_dropped(tmp_path: Path) -> None:
    """A prompt may have five tokens, and all of a text sixteen, its end included."""
    policy = byhand.make("gpt2", tmp_path / "policy")
    five, six = "a b c d e", "a b c d e f"
    completion = {n: " j" * (16 - 5 - 1 + n) for n in (0, 1)}  # fits exactly; is one too long
    rankings = [
        {"prompt": five, "completions": [" i", completion[0]], "ranks": [1, 2]},
        {"prompt": five, "completions": [" i", completion[1]], "ranks": [1, 2]},
        {"prompt": six, "completions": [" i", " h"], "ranks": [1, 2]},
        {"prompt": "d", "completions": [" i", " h"], "ranks": [2, 2]},
    ]
    # Only the first demonstration fits, so its score alone is shifted to 0.
    demonstrations = [{"prompt": five, "completion": completion[n]} for n in (0, 1)]
    config = reward_config(
        policy, tmp_path / "out", rankings=write(tmp_path / "r.jsonl", rankings), max_prompt_tokens=5,
        demonstrations=write(tmp_path / "d.jsonl", demonstrations),
    )  # fmt: skip
    reward.run(config)
    results = done(tmp_path / "out")
    assert results is not None
    assert results["rankings"] == len(byhand.metrics(tmp_path / "out")) == 1
    assert results["dropped"] == {"too long": 2, "all completions tied": 1, "too long in demonstrations": 1}
    assert results["valid"]["held_out"]["rankings"] == 3
    assert results["demonstration_score"] == pytest.approx(0, abs=1e-4)
    score = byhand.score(byhand.scalar_of(tmp_path / "out" / "model"), ids(f"{five}{completion[0]} <end>"))
    assert score.item() == pytest.approx(0, abs=1e-4)

    nothing = write(tmp_path / "nothing.jsonl", [rankings[1]])
    for changes, message in (
        ({"rankings": nothing}, r"nothing\.jsonl: no ranking left to train on .*too long: 1"),
        ({"valid": {"mine": nothing}}, r"valid\.mine: .*nothing\.jsonl: none of its rankings fits"),
        (
            {"demonstrations": write(tmp_path / "long.jsonl", demonstrations[1:])},
            r"long\.jsonl: none of 1 demonstrations fits the context of 16 tokens",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            reward.run(reward_config(policy, tmp_path / "error", overwrite=True, **changes))


@pytest.mark.parametrize(("micro_batch_tokens", "share"), [(1, None), (1, 0.3), (1000, 0.3)])
@pytest.mark.parametrize("kind", KINDS)
def test_supervised_fine_tuning(kind: str, micro_batch_tokens: int, share: float | None, tmp_path: Path) -> None:
    """One batch of all demonstrations, three epochs, with and without pretraining text."""
    base = byhand.make(kind, tmp_path / "base")
    text = "a b c d e f g h i j a c e g i"  # with its end-of-text one row of the model's whole context
    mixture: dict[str, Any] = {}
    if share is not None:
        mixture = {"pretraining_texts": write(tmp_path / "t.jsonl", [{"text": text}]), "pretraining_share": share}
    file = write(tmp_path / "demonstrations.jsonl", DEMONSTRATIONS)
    with byhand.steps_taken() as steps:
        sft.run(
            SftConfig(
                output=tmp_path / "out", model=str(base), demonstrations=file, valid_demonstrations=file, epochs=3,
                batch_size=3, micro_batch_tokens=micro_batch_tokens, **mixture, **byhand.grouped(COMMON),
            )
        )  # fmt: skip
    policy, rows = byhand.policy_of(base), byhand.metrics(tmp_path / "out")
    adam, expected, valid = AdamW(policy, COMMON), [], []

    def loss_on_completions() -> Tensor:
        """The mean over all completion tokens, ends included; none of a prompt's."""
        pairs = [(ids(d["prompt"]), ids(d["completion"] + " <end>")) for d in DEMONSTRATIONS]
        return -torch.cat([byhand.logprobs(policy, p, c) for p, c in pairs]).mean()

    trained = [row for row in rows if "loss/train" in row]
    for t, row in enumerate(trained):
        loss = loss_on_completions()
        mixed = loss if share is None else (1 - share) * loss + share * byhand.mean_nll(policy, ids(text + " <end>"))
        mixed.backward()
        rate = COMMON["learning_rate"] * cosine_to_a_tenth(t, 3)
        step, norm = adam.step(rate)
        expected.append(step)
        assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert row["learning_rate"] == pytest.approx(rate)
        if share is None:
            assert row["loss/train"] == pytest.approx(loss.item(), abs=1e-5)
        valid.append(loss_on_completions().item())
    assert_same_steps(steps, expected)
    results = done(tmp_path / "out")
    assert results is not None
    assert [entry["valid_loss"] for entry in results["history"]] == pytest.approx(valid, abs=1e-5)
    assert valid == sorted(valid, reverse=True)  # the last is the best, so it is the one that was saved
    assert_saved(tmp_path / "out" / "model", policy)


@pytest.mark.parametrize("by_score", [False, True])
def test_sft_saves_its_best_epoch(by_score: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four epochs, a step each. Held-out demonstrations want the opposite, so the loss on them is lowest early; what is
    sampled for the reward model follows a script that is best in between."""
    base = byhand.make("llama", tmp_path / "base")
    opposite = [{"prompt": d["prompt"], "completion": " g g h"} for d in DEMONSTRATIONS]
    values: dict[str, Any] = {"valid_demonstrations": write(tmp_path / "valid.jsonl", opposite)}
    script = ["a <end>", "b c", "d <end>", "e f g <end>"]
    if by_score:
        values["reward_model"] = str(byhand.make("llama", tmp_path / "reward", scalar=True))
        reward_model = byhand.scalar_of(tmp_path / "reward")
        with torch.no_grad():
            scores = [
                sum(byhand.score(reward_model, ids(f"{d['prompt']} {text}")).item() for d in DEMONSTRATIONS) / 3
                for text in script
            ]
        best = max(range(4), key=scores.__getitem__)
        script[1], script[best], scores[1], scores[best] = script[best], script[1], scores[best], scores[1]
    turns = iter(script)

    def sample(self: LocalSampler, requests: Sequence[Request]) -> list[Sample]:
        completion = tuple(ids(next(turns)))
        assert sorted(r.prompt_ids for r in requests) == sorted(tuple(ids(d["prompt"])) for d in DEMONSTRATIONS)
        return [Sample(completion, (-1.0,) * len(completion), "stop") for _ in requests]

    monkeypatch.setattr(LocalSampler, "sample", sample)
    demonstrations = write(tmp_path / "demonstrations.jsonl", DEMONSTRATIONS)
    config = SftConfig(
        output=tmp_path / "out", model=str(base), demonstrations=demonstrations, epochs=4, batch_size=3,
        max_completion_tokens=5, **values, **byhand.grouped(COMMON),
    )  # fmt: skip
    with byhand.steps_taken() as steps:
        sft.run(config)
    results = done(tmp_path / "out")
    assert results is not None
    history = results["history"]
    if by_score:
        assert [entry["score"] for entry in history] == pytest.approx(scores, abs=1e-5)
        chosen = 1
    else:
        losses = [entry["valid_loss"] for entry in history]
        chosen = losses.index(min(losses))
        assert chosen < 3  # or saving the last would do
    assert results["chosen"] == history[chosen]
    saved = byhand.policy_of(tmp_path / "out" / "model")
    for weight, then in zip(saved.parameters(), steps[chosen].after, strict=True):
        torch.testing.assert_close(weight.detach(), then)
