"""Whole iterations of PPO-ptx against the paper's formulas, written out once more (see `byhand`).

Two prompts; what is sampled, and with which log-probabilities, stands in a script. A complete `online.run` must then
log these numbers, take these steps with these gradients and save these weights.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import byhand
from byhand import END, KINDS, AdamW, Interruption, Step, assert_same_steps, assert_saved, ids
from tutelage.data.records import Request, Sample
from tutelage.runs import done
from tutelage.sampling.local import LocalSampler
from tutelage.settings.online import OnlineConfig
from tutelage.stages import online

PROMPTS = ["c d e", "f g"]
# What each prompt is answered with, iteration by iteration. Five tokens is the most: the second one was cut off.
SCRIPT = [["h a <end>", "b i i c j"], ["<end>", "d <end>"]]
# By how much log π was larger when the tokens were sampled, as if in lower precision: ratios differ from 1 at once.
OFFSETS = [[[0.3, -0.2, 0.1], [-0.3, 0.05, 0.2, -0.1, 0.25]], [[-0.25], [0.15, -0.05]]]
TEXT = "a b c d e f g h"  # with its end-of-text one row of nine tokens, and the only one

EVERYTHING = {
    "total_episodes": 4, "batch_size": 2, "mini_batch_size": 2, "inner_epochs": 2, "learning_rate": 0.02,
    "value_learning_rate": 0.05, "weight_decay": 0.1, "betas": (0.8, 0.9), "epsilon": 0.01,
    "max_grad_norm": 1e6, "warmup_steps": 4, "max_new_tokens": 5, "temperature": 0.8, "kl_coef": 0.5,
    "kl_target": 0.5, "kl_horizon": 10, "gamma": 0.9, "lam": 0.7, "cliprange": 0.15, "cliprange_value": 0.02,
    "vf_coef": 0.6, "whiten_advantages": True, "whiten_rewards": True, "missing_eos_penalty": 0.75, "ema_decay": 0.6,
    "ptx_coef": 1.7, "ptx_length": 9, "ptx_per_episode": 1.0, "micro_batch_tokens": 1,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    # An epsilon of Adam as large as gradients: steps then depend on a gradient's size, not its sign alone.
    "everything": {},
    "clipped gradients": {"max_grad_norm": 0.05, "whiten_rewards": False, "kl_target": None, "micro_batch_tokens": 999},
    "plain": {
        "ptx_coef": None, "whiten_advantages": False, "whiten_rewards": False, "ema_decay": 0.0, "temperature": 1.0,
        "warmup_steps": 0, "kl_target": None, "missing_eos_penalty": 0.0,
    },
}  # fmt: skip

PER_TOKEN = (
    "loss/policy", "loss/value", "objective/entropy", "policy/approxkl", "policy/clipfrac", "val/ratio", "val/clipfrac",
)  # fmt: skip


def whiten(tokens: list[Tensor], keep_mean: bool = False) -> list[Tensor]:
    """(x − mean) / sqrt(var + 1e-8) over all tokens of all episodes."""
    x = torch.cat(tokens)
    mean, variance = x.mean(), x.var(correction=0)
    return [(t - mean) / (variance + 1e-8) ** 0.5 + (mean if keep_mean else 0) for t in tokens]


def generalised_advantages(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """A_t = sum over k of (γλ)^k δ_{t+k}, δ_t = R_t + γ V_{t+1} − V_t, and V = 0 after the last token."""
    after = [*values[1:], torch.tensor(0.0)]
    deltas = [r + gamma * v_next - v for r, v_next, v in zip(rewards, after, values, strict=True)]
    return torch.stack(
        [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]  # type: ignore[misc]
    )


class Paper:
    """The paper's algorithm on scripted samples."""

    def __init__(self, folders: dict[str, Path], s: dict[str, Any], texts: Sequence[str] = (TEXT,)) -> None:
        self.s, self.beta, self.texts = s, s["kl_coef"], texts
        self.policy, self.reference = (byhand.policy_of(folders["model"]) for _ in range(2))
        self.reward_model, self.value_model = (byhand.scalar_of(folders["reward_model"]) for _ in range(2))
        self.average = copy.deepcopy(self.policy)
        self.adam = {"policy": AdamW(self.policy, s), "value": AdamW(self.value_model, s)}
        self.steps: list[Step] = []
        self.logged: list[dict[str, float]] = []
        self.sampled: list[dict[str, tuple[list[int], Tensor]]] = []  # prompt -> completion, its log-probabilities

    def iteration(self, i: int, orders: Sequence[Sequence[int]]) -> None:
        """One iteration; each inner epoch takes its minibatches from the episodes in the order given for it."""
        s = self.s
        self.episodes = [(ids(p), ids(c)) for p, c in zip(PROMPTS, SCRIPT[i], strict=True)]
        logged = self.sample(i) | self.credit()
        warm = min(1.0, 0.1 + 0.9 * i / s["warmup_steps"]) if s["warmup_steps"] else 1.0
        self.sums: Any = Counter(dict.fromkeys(PER_TOKEN, 0.0))
        updates: list[dict[str, float]] = []
        for order in orders:
            for start in range(0, len(order), s["mini_batch_size"]):
                updates.append(self.update(order[start : start + s["mini_batch_size"]], warm))
        with torch.no_grad():
            for average, p in zip(self.average.parameters(), self.policy.parameters(), strict=True):
                average.copy_(s["ema_decay"] * average + (1 - s["ema_decay"]) * p)
        logged |= {name: total / self.sums["tokens"] for name, total in self.sums.items() if name != "tokens"}
        logged |= {name: sum(u[name] for u in updates) / len(updates) for name in updates[0]}
        self.logged.append(
            logged
            | {"learning_rate": warm * s["learning_rate"], "episodes": 2.0 * (i + 1), "objective/kl_coef": self.beta}
        )
        if s["kl_target"]:
            surprise = min(max(logged["objective/kl"] / s["kl_target"] - 1, -0.2), 0.2)
            self.beta *= 1 + surprise * 2 / s["kl_horizon"]

    @torch.no_grad()
    def sample(self, i: int) -> dict[str, float]:
        """The script's completions: their log-probabilities, under the reference too, their values and scores."""
        s = self.s
        now = [byhand.logprobs(self.policy, p, c, s["temperature"]) for p, c in self.episodes]
        self.old = [x + torch.tensor(o) for x, o in zip(now, OFFSETS[i], strict=True)]
        self.sampled.append({p: (c, o) for p, (_, c), o in zip(PROMPTS, self.episodes, self.old, strict=True)})
        ref = [byhand.logprobs(self.reference, p, c, s["temperature"]) for p, c in self.episodes]
        self.kl = [o - r for o, r in zip(self.old, ref, strict=True)]
        self.values = [byhand.values(self.value_model, p, c) for p, c in self.episodes]
        raw = torch.stack([byhand.score(self.reward_model, p + c) for p, c in self.episodes])
        ended = torch.tensor([c[-1] == END for _, c in self.episodes]).float()
        self.scores = raw - s["missing_eos_penalty"] * (1 - ended)
        drift = torch.stack([k.sum() for k in self.kl])
        return {
            "objective/kl": drift.mean().item(), "objective/scores": raw.mean().item(),
            "objective/rlhf_reward": (self.scores - self.beta * drift).mean().item(),
            "objective/length": sum(len(c) for _, c in self.episodes) / 2, "objective/ended": ended.mean().item(),
        }  # fmt: skip

    def credit(self) -> dict[str, float]:
        """r_t = −β (log π − log π_ref), the score at the last token; then advantages and returns."""
        s = self.s
        rewards = [-self.beta * k for k in self.kl]
        for reward, whole in zip(rewards, self.scores, strict=True):
            reward[-1] += whole
        if s["whiten_rewards"]:
            rewards = whiten(rewards, keep_mean=True)
        self.advantages = [
            generalised_advantages(r, v, s["gamma"], s["lam"]) for r, v in zip(rewards, self.values, strict=True)
        ]
        self.returns = [a + v for a, v in zip(self.advantages, self.values, strict=True)]
        errors = torch.cat([(v - r) ** 2 for v, r in zip(self.values, self.returns, strict=True)])
        if s["whiten_advantages"]:
            self.advantages = whiten(self.advantages)
        return {"objective/value_error": errors.mean().item()}

    def update(self, members: Sequence[int], warm: float) -> dict[str, float]:
        """One minibatch: means per token of the policy's, the text's and the value model's losses, and two steps."""
        s = self.s
        count = sum(len(self.episodes[m][1]) for m in members)
        self.sums["tokens"] += count
        objective = sum(self.policy_loss(m) for m in members) / count
        logged = {}
        if s["ptx_coef"] is not None:
            losses = [byhand.mean_nll(self.policy, ids(text + " <end>")) for text in self.texts]
            text_loss = torch.stack(losses).mean()
            objective = objective + s["ptx_coef"] * text_loss
            logged["loss/ptx"] = text_loss.item()
        objective.backward()
        (s["vf_coef"] * sum(self.value_loss(m) for m in members) / count).backward()
        step, logged["grad_norm"] = self.adam["policy"].step(warm * s["learning_rate"])
        self.steps += [step, self.adam["value"].step(warm * s["value_learning_rate"])[0]]
        return logged

    def policy_loss(self, m: int) -> Tensor:
        """Σ max(−A ρ, −A clip(ρ, 1 ± ε)) over an episode's tokens."""
        completion, epsilon = self.episodes[m][1], self.s["cliprange"]
        table = byhand.log_table(self.policy, *self.episodes[m], self.s["temperature"])
        delta = table[range(len(completion)), completion] - self.old[m]
        ratio = delta.exp()
        free, clipped = -self.advantages[m] * ratio, -self.advantages[m] * ratio.clamp(1 - epsilon, 1 + epsilon)
        loss = torch.maximum(free, clipped).sum()
        self.sums["loss/policy"] += loss.item()
        self.sums["objective/entropy"] -= (table.exp() * table).sum().item()
        self.sums["policy/approxkl"] += 0.5 * (delta**2).sum().item()
        self.sums["policy/clipfrac"] += (clipped > free).sum().item()
        self.sums["val/ratio"] += ratio.sum().item()
        return loss

    def value_loss(self, m: int) -> Tensor:
        """½ Σ max((V − R)², (clip(V, V_old ± ε) − R)²) over an episode's tokens."""
        v, old, epsilon = byhand.values(self.value_model, *self.episodes[m]), self.values[m], self.s["cliprange_value"]
        near = old + (v - old).clamp(-epsilon, epsilon)
        free, clipped = (v - self.returns[m]) ** 2, (near - self.returns[m]) ** 2
        loss = 0.5 * torch.maximum(free, clipped).sum()
        self.sums["loss/value"] += loss.item()
        self.sums["val/clipfrac"] += (clipped > free).sum().item()
        return loss


@pytest.fixture
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Path]:
    """A policy and a reward model whose dropout would show, if ever it were on."""
    kind = request.param
    return {
        "model": byhand.make(kind, tmp_path / "policy", dropout=0.5),
        "reward_model": byhand.make(kind, tmp_path / "reward", scalar=True, dropout=0.5),
    }


def settings(s: dict[str, Any], folders: dict[str, Path], output: Path, texts: Sequence[str] = (TEXT,)) -> OnlineConfig:
    """The stage's config, with its files beside the output."""
    values: dict[str, Any] = {name: str(folder) for name, folder in folders.items()} | s
    if s["ptx_coef"] is None:
        del values["ptx_coef"]
    else:
        values["pretraining_texts"] = byhand.write(output.with_name("texts.jsonl"), [{"text": text} for text in texts])
    prompts = byhand.write(output.with_name("prompts.jsonl"), [{"prompt": p} for p in PROMPTS])
    return OnlineConfig(**byhand.grouped({"output": output, "prompts": prompts, "seed": 3, **values}))


def follow_script(
    monkeypatch: pytest.MonkeyPatch, s: dict[str, Any], iterations: Sequence[Any], breaks: bool = False
) -> None:
    """Let the sampler answer as the script does, for these iterations; then it breaks off, or says the last again, for
    a finished run that measures its weights."""
    answers = iter(iterations)

    def sample(self: LocalSampler, requests: Sequence[Request]) -> list[Sample]:
        answer = next(answers, None)
        if answer is None and breaks:
            raise Interruption
        answer = answer or iterations[-1]
        script = {tuple(ids(p)): completion for p, completion in answer.items()}
        assert {r.prompt_ids for r in requests} == script.keys()
        for r in requests:
            assert (r.temperature, r.max_new_tokens, r.top_p, r.top_k) == (s["temperature"], 5, 1, 0)
            assert END in r.stop_ids
        asked = [script[r.prompt_ids] for r in requests]
        return [Sample(tuple(c), tuple(lp.tolist()), "stop" if c[-1] == END else "length") for c, lp in asked]

    monkeypatch.setattr(LocalSampler, "sample", sample)


def run_online(
    s: dict[str, Any], folders: dict[str, Path], paper: Paper, output: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Step]:
    """The stage on the script: the steps its optimizers took."""
    follow_script(monkeypatch, s, paper.sampled)
    with byhand.steps_taken() as steps:
        online.run(settings(s, folders, output))
    return steps


def assert_steps(steps: Sequence[Step], paper: Paper) -> None:
    """The policy's steps, and the value model's; which of the two goes first does not matter."""
    for scalar in (False, True):
        assert_same_steps(
            [step for step in steps if step.of_scalar == scalar], [p for p in paper.steps if p.of_scalar == scalar]
        )


def assert_logged(output: Path, expected: Sequence[dict[str, float]]) -> None:
    rows = byhand.metrics(output)
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        assert ("loss/ptx" in row) == ("loss/ptx" in wanted)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("folders", KINDS, indirect=True)
def test_two_iterations(
    variant: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = EVERYTHING | VARIANTS[variant]
    paper = Paper(folders, s)
    for i in range(2):
        paper.iteration(i, orders=[(0, 1), (0, 1)])  # both episodes are one minibatch: their order does not matter
    steps = run_online(s, folders, paper, tmp_path / "out", monkeypatch)
    assert_logged(tmp_path / "out", paper.logged)
    assert_steps(steps, paper)
    assert_saved(tmp_path / "out" / "model", paper.average)
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    with torch.no_grad():
        for row in samples:
            k = [c.removesuffix("<end>").strip() for c in SCRIPT[row["iteration"]]].index(row["completion"].strip())
            sequence = ids(f"{PROMPTS[k]} {SCRIPT[row['iteration']][k]}")
            assert row["score"] == pytest.approx(float(byhand.score(paper.reward_model, sequence)), abs=1e-5)
    assert len(samples) == 4
    texts = [] if s["ptx_coef"] is None else ["pretraining_texts"]
    byhand.assert_run_of(tmp_path / "out", "online", "model", "reward_model", "prompts", *texts)
    results = done(tmp_path / "out")
    assert results is not None
    assert (results["prompts"], results["dropped"]) == (2, {})
    assert results["kl_coef"] == pytest.approx(paper.beta)


def test_the_script_is_hard_enough(tmp_path: Path) -> None:
    """Every part of the formulas has work to do, or the test above would prove less than it says."""
    for kind in KINDS:
        folders = {
            "model": byhand.make(kind, tmp_path / kind / "p"),
            "reward_model": byhand.make(kind, tmp_path / kind / "r", scalar=True),
        }
        paper = Paper(folders, EVERYTHING)
        for i in range(2):
            paper.iteration(i, [(0, 1), (0, 1)])
        first, second = paper.logged
        assert 0 < first["policy/clipfrac"] < 1
        assert 0 < first["val/clipfrac"] < 1
        assert abs(first["objective/kl"]) > 0.05
        assert second["objective/kl_coef"] != first["objective/kl_coef"]
        assert first["objective/ended"] == 0.5
        moved = [(a - b).abs().max() for a, b in zip(paper.steps[0].after, paper.steps[0].before, strict=True)]
        assert max(moved) > 1e-3
        for variant in ("everything", "clipped gradients"):
            norm, limit = first["grad_norm"], (EVERYTHING | VARIANTS[variant])["max_grad_norm"]
            assert (norm > 2 * limit) == (variant == "clipped gradients")


@pytest.mark.parametrize("folders", KINDS, indirect=True)
def test_minibatches_take_each_episode_once_an_epoch(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of two minibatches of one: four steps a model, in one of the four orders there are."""
    s = EVERYTHING | {"total_episodes": 2, "mini_batch_size": 1}
    candidates = []
    for orders in product(permutations((0, 1)), repeat=2):
        paper = Paper(folders, s)
        paper.iteration(0, orders)
        candidates.append(paper)
    steps = run_online(s, folders, candidates[0], tmp_path / "out", monkeypatch)
    assert len(steps) == 8
    row = byhand.metrics(tmp_path / "out")[0]
    paper = min(candidates, key=lambda p: abs(p.logged[0]["loss/policy"] - row["loss/policy"]))
    assert_logged(tmp_path / "out", paper.logged)
    assert_steps(steps, paper)
    assert_saved(tmp_path / "out" / "model", paper.average)


@pytest.mark.parametrize("folders", ["llama"], indirect=True)
def test_a_run_goes_on_where_it_was_interrupted(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models, moments of Adam, the average and β come back: the second iteration is what it would have been."""
    paper = Paper(folders, EVERYTHING)
    for i in range(2):
        paper.iteration(i, orders=[(0, 1), (0, 1)])
    config = settings(EVERYTHING | {"checkpoint_seconds": 1e-9}, folders, tmp_path / "out")
    with byhand.steps_taken() as steps:
        follow_script(monkeypatch, EVERYTHING, paper.sampled[:1], breaks=True)
        with pytest.raises(Interruption):
            online.run(config)
        assert done(tmp_path / "out") is None
        follow_script(monkeypatch, EVERYTHING, paper.sampled[1:])
        online.run(config)
        online.run(config)  # a finished run is left alone
    assert_logged(tmp_path / "out", paper.logged)
    assert_steps(steps, paper)
    assert_saved(tmp_path / "out" / "model", paper.average)


@pytest.mark.parametrize("folders", ["llama"], indirect=True)
def test_rows_of_text_are_drawn(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows for two episodes at 2.5 an episode: the gradient is that of the mean over what was drawn."""
    texts = (TEXT, "j i j i j i j i")
    s = EVERYTHING | {"total_episodes": 2, "inner_epochs": 1, "ptx_per_episode": 2.5, "micro_batch_tokens": 18}
    papers = [Paper(folders, s, [texts[0]] * k + [texts[1]] * (5 - k)) for k in range(6)]
    for paper in papers:
        paper.iteration(0, [(0, 1)])
    follow_script(monkeypatch, s, papers[0].sampled)
    with byhand.steps_taken() as steps:
        online.run(settings(s, folders, tmp_path / "out", texts))
    row = byhand.metrics(tmp_path / "out")[0]
    paper = min(papers, key=lambda p: abs(p.logged[0]["loss/ptx"] - row["loss/ptx"]))
    assert len(set(paper.texts)) == 2  # this seed draws both
    assert_logged(tmp_path / "out", paper.logged)
    assert_steps(steps, paper)


SLOW = EVERYTHING | {
    "learning_rate": 1e-12, "value_learning_rate": 1e-12, "inner_epochs": 1, "max_new_tokens": 3,
    "ema_decay": 0.0, "kl_target": None, "warmup_steps": 0,
}  # fmt: skip


@pytest.mark.parametrize("folders", ["llama"], indirect=True)
def test_every_update_draws_anew(folders: dict[str, Path], tmp_path: Path) -> None:
    """A policy that hardly moves: what it loses on text shows which rows were drawn."""
    texts = (TEXT, "j i j i j i j i", "a a a a a a a a")
    config = settings(SLOW | {"total_episodes": 16, "ptx_per_episode": 0.5}, folders, tmp_path / "out", texts)
    online.run(config)
    policy = byhand.policy_of(folders["model"])
    losses = [byhand.mean_nll(policy, ids(text + " <end>")).item() for text in texts]
    drawn = [min(range(3), key=lambda k: abs(losses[k] - row["loss/ptx"])) for row in byhand.metrics(tmp_path / "out")]
    assert len(drawn) == 8
    assert [losses[k] for k in drawn] == pytest.approx([row["loss/ptx"] for row in byhand.metrics(tmp_path / "out")])
    assert set(drawn) == {0, 1, 2}
    online.run(config.model_copy(update={"output": tmp_path / "again"}))  # the seed alone decides
    again, first = (byhand.metrics(tmp_path / name) for name in ("again", "out"))
    assert [row["loss/ptx"] for row in again] == [row["loss/ptx"] for row in first]


@pytest.mark.parametrize("folders", ["llama"], indirect=True)
def test_what_is_sampled_depends_on_the_seed_alone(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two prompts, twelve episodes an iteration, so each is asked six times; three iterations."""
    real, asked = LocalSampler.sample, []

    def sample(self: LocalSampler, requests: Sequence[Request]) -> list[Sample]:
        asked[-1].append(list(requests))
        return real(self, requests)

    monkeypatch.setattr(LocalSampler, "sample", sample)
    s = SLOW | {"total_episodes": 30, "batch_size": 12, "mini_batch_size": 12, "sample_every": 2, "ptx_coef": None}
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        asked.append([])
        online.run(settings(s | {"seed": seed}, folders, tmp_path / name))
    assert asked[0] == asked[1]
    for iterations in asked:
        assert [len(requests) for requests in iterations] == [
            12,
            12,
            12,
            2,
            2,
        ]  # three for 30 episodes, then both weights
        del iterations[3:]
        for requests in iterations:
            prompts = [r.prompt_ids for r in requests]
            assert {prompts.count(p) for p in prompts} == {6}
    seeds = [r.seed for iterations in asked[1:] for requests in iterations for r in requests]
    assert len(set(seeds)) == 72
    # Of the first and the third iteration, and of the last one anyway, eight samples are kept.
    kept = [json.loads(line) for line in (tmp_path / "one" / "samples.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in kept] == [0] * 8 + [2] * 8
    assert {len(row["completion"].split()) <= 3 for row in kept} == {True}
    assert len({row["prompt"] for row in kept}) == 2
    assert len({(row["prompt"], row["completion"]) for row in kept}) > 4


@pytest.mark.parametrize("folders", ["gpt2"], indirect=True)
@pytest.mark.parametrize(
    ("changes", "longest"),
    [
        ({"max_new_tokens": 5}, 6),  # the models' contexts are 16 and, the smaller one, 11 tokens
        ({"max_new_tokens": 3}, 8),
        ({"max_new_tokens": 3, "max_prompt_tokens": 7}, 7),
    ],
)
def test_prompts_leave_room_for_a_completion(
    changes: dict[str, int], longest: int, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders["reward_model"] = byhand.make("gpt2", tmp_path / "small", scalar=True, context=11)
    lengths = [2, longest, longest + 1, 14]
    prompts = byhand.write(tmp_path / "p.jsonl", [{"prompt": " ".join("abcdefghijabcdef"[:n])} for n in lengths])
    s = SLOW | changes | {"prompts": prompts, "batch_size": 2, "ptx_length": 2}
    online.run(settings(s, folders, tmp_path / "out"))
    results = done(tmp_path / "out")
    assert results is not None
    assert (results["prompts"], results["dropped"]) == (2, {"too long": 2})
    byhand.write(tmp_path / "p.jsonl", [{"prompt": "a b c d e f g h i"}])
    with pytest.raises(
        ValueError, match=r"p\.jsonl: none of 1 prompts leaves room for a completion: (lower|raise) .*=\d \(.*11"
    ):
        online.run(settings(s, folders, tmp_path / "none"))


@pytest.mark.parametrize("folders", ["llama"], indirect=True)
def test_batches_must_divide(folders: dict[str, Path], tmp_path: Path) -> None:
    s = EVERYTHING | {"batch_size": 3}
    with pytest.raises(ValueError, match="mini_batch_size=2 does not divide batch_size=3"):
        online.run(settings(s, folders, tmp_path / "out"))
