"""The loop knows no algorithm by name, and every pass goes through the model's own method."""

from __future__ import annotations

import gc
import json
import math
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import create_model
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage import algorithms
from tutelage.algorithms import make_algorithm
from tutelage.algorithms.clipped import clipped_loss, divisor
from tutelage.algorithms.learner import Learner, even_cuts
from tutelage.data.datasets import write_jsonl
from tutelage.data.records import Prompt, Request, Sample
from tutelage.models import loading
from tutelage.models.loading import new_scalar, save_model
from tutelage.models.tokens import encode_prompt
from tutelage.rewards.reward_model import RewardModel
from tutelage.runs import done
from tutelage.sampling import engines
from tutelage.sampling.local import LocalSampler, in_bf16
from tutelage.sampling.rollout import Rollout, episodes_of, joined_episodes
from tutelage.settings.algorithms import GRPO, PPO, RLOO, ReinforcePP
from tutelage.settings.online import OnlineConfig
from tutelage.settings.reward import RewardConfig
from tutelage.settings.sft import SftConfig
from tutelage.stages import online, online_models, reward, sft


@pytest.fixture
def files(folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> dict[str, Any]:
    """What the loop reads."""
    save_model(new_scalar(folders("llama"), tokenizer, seed=1), tokenizer, tmp_path / "reward_model")
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": text} for text in ("the cat", "a b c", "moon", "sun", "red")])
    return {
        "model": str(folders("llama")), "reward_model": str(tmp_path / "reward_model"),
        "prompts": str(tmp_path / "prompts.jsonl"), "batch_size": 8, "mini_batch_size": 4, "total_episodes": 16,
        "sampler": {"max_new_tokens": 6}, "optimizer": {"learning_rate": 1e-3},
    }  # fmt: skip


def test_an_algorithm_without_a_value_model_runs_in_the_same_loop(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts: list[Rollout] = []
    real = Learner.improve

    def improve(self: Learner, rollout: Rollout, *rest: Any) -> Any:
        assert self.value_model is None
        assert list(self.optimizers) == ["policy"]
        rollouts.append(rollout)
        if len(rollouts) == 3:
            raise KeyboardInterrupt
        return real(self, rollout, *rest)

    monkeypatch.setattr(Learner, "improve", improve)
    config = OnlineConfig(
        **files | {"total_episodes": 32}, algorithm="rloo", checkpoint_seconds=1e-9, output=tmp_path / "run"
    )
    with pytest.raises(KeyboardInterrupt):
        online.run(config)
    kept = {path.name for path in (tmp_path / "run" / "state").glob("*.safetensors")}
    assert kept == {"policy.safetensors", "policy.optimizer.safetensors", "average.safetensors", "rng.safetensors"}
    online.run(config)
    assert done(tmp_path / "run") is not None
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["episodes"] for row in rows] == [8, 16, 24, 32]
    assert all("loss/policy" in row and not {"loss/value", "val/explained_variance"} & row.keys() for row in rows)
    for rollout in rollouts:
        names = [prompt.id for prompt in rollout.prompts]
        assert names[:4] == [names[0]] * 4 != names[4:] == [names[4]] * 4
        assert rollout.group.tolist() == [0] * 4 + [1] * 4
        assert len({tuple(ids) for ids in rollout.sequences[:4]}) > 1  # each copy has a seed of its own
        assert rollout.values is rollout.returns is None
        whole = rollout.rewards[:4].sum(1)
        assert_close(rollout.advantages[0, 0], whole[0] - whole[1:].mean())
    assert rollouts[2].sequences == rollouts[3].sequences  # the third was made again after the interruption


def test_groups_must_divide_an_iteration() -> None:
    with pytest.raises(ValueError, match="batch_size=6 is no multiple of the 4 samples of a prompt"):
        make_algorithm(RLOO(), 6)


def test_credit_without_a_value_model_by_hand() -> None:
    """Two completions of two prompts, with returns of 3 and 1, 4 and 0."""
    samples = [Sample((5,) * n, (-1.0,) * n, "stop") for n in (2, 1, 1, 2)]
    episodes = episodes_of([Prompt(id="p", text="a")] * 4, [Request((5,), 0, 9, ())] * 4, samples, 2)
    rewards = torch.tensor([[1.0, 2], [1, 0], [4, 0], [-1, 1]])

    def credit(settings: Any) -> torch.Tensor:
        advantages, returns = make_algorithm(settings, 12).credit(episodes, rewards, None)
        assert returns is None
        return advantages

    assert credit(RLOO()).tolist() == [[2, 2], [-2, 0], [4, 0], [-4, -4]]
    assert credit(GRPO(num_generations=2, scale_rewards=False)).tolist() == [[1, 1], [-1, 0], [2, 0], [-2, -2]]
    one = 0.5**0.5  # two numbers lie this many standard deviations from their mean, with n - 1
    expected = torch.tensor([[one, one], [-one, 0], [one, 0], [-one, -one]])
    assert_close(credit(GRPO(num_generations=2)), expected, rtol=0, atol=1e-4)
    # Still to come are 3, 2; 1; 4; 0, 1: their mean is 11/6, their variance 65/36.
    expected = torch.tensor([[7.0, 1], [-5, 0], [13, 0], [-11, -5]]) / 65**0.5
    assert_close(credit(ReinforcePP()), expected)


def test_an_algorithm_takes_its_samples_and_rounds_from_its_settings() -> None:
    for settings, samples, refill in (
        (RLOO(num_generations=3, refill=2), 3, 2), (GRPO(num_generations=6, refill=1), 6, 1),
        (ReinforcePP(num_generations=2), 2, 0), (ReinforcePP(), 1, 0), (PPO(), 1, 0),
    ):  # fmt: skip
        algorithm = make_algorithm(settings, 12)
        assert (algorithm.settings, algorithm.samples_per_prompt, algorithm.refill) == (settings, samples, refill)
        assert (algorithm.value_loss is None) == (settings != PPO())


@pytest.mark.parametrize("settings", [RLOO(), GRPO(), GRPO(scale_rewards=False, aggregation="constant"), ReinforcePP()])
def test_every_algorithm_learns_in_the_loop(settings: Any, files: dict[str, Any], tmp_path: Path) -> None:
    more = {"total_episodes": 16, "mini_batch_size": 8, "kl_coef": 0.1}
    online.run(OnlineConfig(**files | more, algorithm=settings, output=tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert ("loss/kl" in rows[0]) == (settings.kl != "reward")
    assert rows[0].get("loss/kl", 0) == pytest.approx(0, abs=1e-6)  # the policy is the reference still
    assert rows[1].get("loss/kl", 1) > 0
    before, after = (
        load_file(Path(folder) / "model.safetensors") for folder in (files["model"], tmp_path / "run/last")
    )
    assert any((before[name] != after[name]).any() for name in before)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_passes_and_their_order_never_change_a_result(
    name: str, aggregation: str, files: dict[str, Any], tmp_path: Path
) -> None:
    folders = []
    for tokens in (8, 60, 10_000):
        folders.append(tmp_path / str(tokens))
        algorithm = {"name": name, "aggregation": aggregation, "kl": "k3"}
        online.run(OnlineConfig(**files, algorithm=algorithm, micro_batch_tokens=tokens, output=folders[-1]))
    first, *others = (load_file(folder / "last" / "model.safetensors") for folder in folders)
    for other in others:
        for key, weight in first.items():
            assert_close(other[key], weight, rtol=0, atol=1e-5)


def test_losses_are_aggregated_as_documented() -> None:
    """Completions of one and three tokens; at ratio 1 the loss of a token is its advantage, with the other sign."""
    mask = torch.tensor([[True, False, False], [True, True, True]])
    zero = torch.zeros(2, 3)
    advantages = torch.tensor([[4.0, 9, 9], [1, 2, 3]])
    rollout = Rollout(
        prompts=[], group=zero[:, 0], sequences=[], prompt_lengths=[], mask=mask, logprobs=zero, ended=mask[:, 0],
        scores=zero[:, 0], ref_logprobs=zero, values=None, rewards=zero, advantages=advantages, returns=None,
    )  # fmt: skip
    for aggregation, expected in (("token", -10 / 4), ("sequence", -(4 + 2) / 2), ("constant", -10 / (2 * 5))):
        settings = PPO(aggregation=aggregation)  # type: ignore[arg-type]
        loss, _ = clipped_loss(settings, zero, rollout, 0.0)
        assert float(loss) / divisor(settings, mask, 5) == pytest.approx(expected)


@pytest.mark.parametrize(("aggregation", "kl"), [("token", "k2"), ("sequence", "k2"), ("sequence", "k3")])
def test_the_clipped_loss_and_its_penalty_by_hand(aggregation: Any, kl: Any) -> None:
    """Ratios 1.5 of one token, and 5 and 1 of two, with advantages 1, -1 and 2; their clips are at 1.4, 3 and nowhere.
    log π is 1, 2 and 0 above the reference's."""
    mask = torch.tensor([[True, False], [True, True]])
    old, none = torch.full((2, 2), -1.0), torch.zeros(2)
    logprobs = old + torch.tensor([[1.5, 9.0], [5.0, 1.0]]).log()
    rollout = Rollout(
        prompts=[], group=none, sequences=[], prompt_lengths=[], mask=mask, logprobs=old, ended=mask[:, 0], scores=none,
        ref_logprobs=logprobs - torch.tensor([[1.0, 9], [2, 0]]), values=None, rewards=old,
        advantages=torch.tensor([[1.0, 9], [-1, 2]]), returns=None,
    )  # fmt: skip
    settings = PPO(cliprange=0.2, cliprange_high=0.4, dual_clip=3, aggregation=aggregation, kl=kl)
    loss, metrics = clipped_loss(settings, logprobs, rollout, 0.1)
    weight = 0.5 if aggregation == "sequence" else 1.0
    first, second = (0.5, 2.0) if kl == "k2" else (math.exp(-1) - 1 + 1, math.exp(-2) - 1 + 2)
    penalty = 1.5 * first + weight * 5 * second
    assert float(loss) == pytest.approx(-1.4 + weight * (3 - 2) + 0.1 * penalty)
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {"loss/kl": penalty, "policy/approxkl": (math.log(1.5) ** 2 + math.log(5) ** 2) / 2, "policy/clipfrac": 2,
         "val/ratio": 7.5}
    )  # fmt: skip


def test_part_of_a_rollout_is_a_rollout() -> None:
    prompts = [Prompt(id=str(i), text="a") for i in range(3)]
    requests = [Request((5,) * (i + 1), i, 4, ()) for i in range(3)]
    samples = [Sample((6, 7), (-1.0, -2.0), "stop"), Sample((8,), (-3.0,), "length"), Sample((9,), (-4.0,), "stop")]
    episodes = episodes_of(prompts, requests, samples)
    assert episodes.mask.tolist() == [[True, True], [True, False], [True, False]]
    assert episodes.logprobs.tolist() == [[-1, -2], [-3, 0], [-4, 0]]
    table = torch.arange(6.0).view(3, 2)
    rollout = Rollout(
        **vars(episodes), scores=torch.tensor([1.0, 2.0, 3.0]), ref_logprobs=table, values=None, rewards=table,
        advantages=table, returns=None,
    )  # fmt: skip
    part = rollout.take([2, 0])
    assert [p.id for p in part.prompts] == ["2", "0"]
    assert (part.sequences, part.prompt_lengths) == ([[5, 5, 5, 9], [5, 6, 7]], [3, 1])
    assert (part.group.tolist(), part.ended.tolist(), part.scores.tolist()) == ([2, 0], [True, True], [3, 1])
    assert part.advantages.tolist() == [[4, 5], [0, 1]]
    assert part.values is None
    moved = vars(part.to(torch.device("meta")))
    tensors = {name for name, value in vars(part).items() if isinstance(value, torch.Tensor)}
    assert {name for name, value in moved.items() if getattr(value, "is_meta", False)} == tensors
    assert moved["prompts"] == part.prompts
    with pytest.raises(AttributeError):
        part.scores = table  # type: ignore[misc]


def test_rounds_of_sampling_become_one() -> None:
    """One group, then none, then two: different groups never share a number."""

    def sampled(number: int, length: int) -> Any:
        prompts = [Prompt(id=str(i), text="a") for i in range(number)]
        requests = [Request((4,) * (i + 1), i, 9, ()) for i in range(number)]
        samples = [Sample((5,) * length, (-2.0,) * length, "stop" if i else "length") for i in range(number)]
        return episodes_of(prompts, requests, samples, 2)

    joined = joined_episodes([sampled(2, 1), sampled(2, 3).take([]), sampled(4, 2)])
    first, second, third = (joined.group[i : i + 2].tolist() for i in (0, 2, 4))
    assert (first[0], second[0], third[0]) == (first[1], second[1], third[1])
    assert len({first[0], second[0], third[0]}) == 3
    assert [p.id for p in joined.prompts] == ["0", "1", "0", "1", "2", "3"]
    assert joined.sequences == [[4, 5], [4, 4, 5], *([4] * (i + 1) + [5, 5] for i in range(4))]
    assert joined.prompt_lengths == [1, 2, 1, 2, 3, 4]
    assert joined.mask.sum(1).tolist() == [1, 1, 2, 2, 2, 2]
    assert joined.logprobs.sum(1).tolist() == [-2, -2, -4, -4, -4, -4]
    assert joined.mask.shape == joined.logprobs.shape == (6, 2)
    assert joined.ended.tolist() == [False, True, False, True, True, True]


@pytest.mark.parametrize("sample", [Sample((), (), "stop"), Sample((5, 6), (-1.0,), "stop")])
def test_a_sampler_that_breaks_its_word_is_named(sample: Sample) -> None:
    """One log-probability too many would shift all that come after it."""
    good = Sample((5,), (-1.0,), "stop")
    with pytest.raises(ValueError, match=r"sampler: answer 1 has \d tokens and \d log-probabilities"):
        episodes_of([Prompt(id="p", text="a")] * 2, [Request((5,), 0, 4, ())] * 2, [good, sample])


def test_rounds_are_as_wide_as_the_longest_that_is_left() -> None:
    """A flat group may hold the longest completion; the reference's log-probabilities are as wide as what is left."""
    prompts, requests = [Prompt(id="p", text="a")] * 3, [Request((5,), 0, 9, ())] * 3
    first, second = (
        episodes_of(prompts, requests, [Sample((3,) * n, (-1.0,) * n, "stop") for n in lengths])
        for lengths in ((7, 2, 4), (3, 8, 1))
    )
    alone = joined_episodes([first.take([1, 2])])
    assert alone.mask.shape == alone.logprobs.shape == (2, 4)
    assert alone.logprobs.sum(1).tolist() == [-2.0, -4.0]
    both = joined_episodes([first.take([]), first.take([1, 2]), second.take([0, 2])])
    assert both.mask.sum(1).tolist() == [2, 4, 3, 1]
    assert both.mask.shape == both.logprobs.shape == (4, 4)
    assert joined_episodes([first, second]).mask.shape == (6, 8)


@contextmanager
def only_through_the_models_own_method(monkeypatch: pytest.MonkeyPatch, seen: set[str]) -> Iterator[None]:
    """A forward pass outside of the model's own method and of sampling is an error, as where models are sharded."""
    inside = 0
    real, real_sample = loading.with_forward, LocalSampler.sample

    def entered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            inside += 1
            seen.add(name)
            try:
                return function(*args, **kwargs)
            finally:
                inside -= 1

        return call

    def check(module: torch.nn.Module, *_: Any) -> None:
        assert inside, f"{type(module).__name__} is called from outside"

    def with_forward(model: PreTrainedModel) -> PreTrainedModel:
        model = real(model)
        name = "token_scores" if hasattr(model, "score") else "token_logprobs"
        setattr(model, name, entered(name, getattr(model, name)))
        model.base_model.register_forward_pre_hook(check)
        return model

    monkeypatch.setattr(loading, "with_forward", with_forward)
    monkeypatch.setattr(LocalSampler, "sample", entered("sample", real_sample))
    yield


def test_every_pass_of_training_goes_through_the_models_own_method(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"p {i}", "completions": [" a", " b c", " d"], "ranks": [1, 2, 2]} for i in range(6)]
    write_jsonl(tmp_path / "rankings.jsonl", rows)
    write_jsonl(tmp_path / "demos.jsonl", [{"prompt": row["prompt"], "completion": " a"} for row in rows])
    write_jsonl(tmp_path / "texts.jsonl", [{"text": "the cat sat on the mat and the moon was red " * 8}])
    texts, model = str(tmp_path / "texts.jsonl"), files["model"]
    seen: set[str] = set()
    with only_through_the_models_own_method(monkeypatch, seen):
        rankings = {"model": model, "rankings": str(tmp_path / "rankings.jsonl"), "output": tmp_path / "reward"}
        reward.run(RewardConfig(**rankings))
        demonstrations = {"model": model, "demonstrations": str(tmp_path / "demos.jsonl"), "output": tmp_path / "sft"}
        sft.run(SftConfig(**demonstrations, epochs=1, pretraining_texts=texts, reward_model=files["reward_model"]))
        online.run(OnlineConfig(**files, pretraining_texts=texts, ptx_length=16, output=tmp_path / "ppo"))
    assert seen == {"token_logprobs", "token_scores", "sample"}


def test_any_sampler_serves_the_loop(files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages ask for the engine that the settings name, and know none."""
    asked: list[int] = []

    class Fives:
        """Says 5 twice, and ends."""

        def sample(self, requests: Sequence[Request]) -> list[Sample]:
            asked.append(len(requests))
            return [Sample((5, 5, 1), (-1.0, -1.0, -1.0), "stop") for _ in requests]

    for module in (online, online_models):
        monkeypatch.setattr(module, "open_sampler", lambda *args, **kwargs: Fives())
    monkeypatch.setattr(engines, "LocalSampler", None)
    online.run(OnlineConfig(**files, output=tmp_path / "run"))
    assert asked == [8, 8, 5, 5]  # two iterations, and both sets of weights at the end
    (first, *_) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert (json.loads(first)["objective/length"], json.loads(first)["objective/ended"]) == (3, 1)
    assert load_file(tmp_path / "run" / "last" / "model.safetensors")


@pytest.mark.parametrize("tokens", [8, 10_000])
def test_how_far_samples_are_from_the_policy(
    tokens: int, files: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: Any
) -> None:
    """Against transformers' own probabilities, before the first update; a sampler that is far off is warned of."""
    said = [-1.0, -5.0, -9.0]

    class Fives:
        def sample(self, requests: Sequence[Request]) -> list[Sample]:
            return [Sample((5, 5, 1), tuple(said), "stop") for _ in requests]

    for module in (online, online_models):
        monkeypatch.setattr(module, "open_sampler", lambda *args, **kwargs: Fives())
    sizes = {"batch_size": 5, "mini_batch_size": 5, "total_episodes": 25, "inner_epochs": 2}
    sizes["micro_batch_tokens"] = tokens
    online.run(OnlineConfig(**files | sizes, output=tmp_path / "run"))
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    policy, ratios = loading.load_policy(files["model"], tokenizer).eval(), []
    for prompt in ("the cat", "a b c", "moon", "sun", "red"):
        ids = [*encode_prompt(tokenizer, prompt), 5, 5, 1]
        with torch.no_grad():
            logprobs = policy(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        ratios += [math.exp(float(logprobs[len(ids) - 4 + t, ids[len(ids) - 3 + t]]) - said[t]) for t in range(3)]
    assert first["sampler/ratio"] == pytest.approx(sum(ratios) / 15, rel=1e-4)
    assert first["sampler/ratio_max"] == pytest.approx(max(ratios), rel=1e-4)
    ess = sum(ratios) ** 2 / (15 * sum(w * w for w in ratios))
    assert first["sampler/ess"] == pytest.approx(ess, rel=1e-4)
    assert ess < 0.5
    results = done(tmp_path / "run")
    assert results is not None
    assert any("the samples are not the policy's" in warning for warning in results["warnings"])


def test_a_copy_of_a_model_goes_when_nobody_has_it(files: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """At once, without a collection: each call of a sampler in bf16 makes one."""
    gc.disable()
    try:
        policy = loading.load_policy(files["model"], tokenizer)
        copied = weakref.ref(in_bf16(policy))
        assert copied() is None
        whole = weakref.ref(policy)
        del policy
        assert whole() is None
    finally:
        gc.enable()


def test_engines_are_opened_as_the_settings_say(files: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    """While it trains the loop samples in bf16 where that gains; what it reports is sampled exactly."""
    seen: list[tuple[int, bool]] = []

    def spy(policy: PreTrainedModel, batch_tokens: int, bf16: bool) -> LocalSampler:
        seen.append((batch_tokens, bf16))
        return LocalSampler(policy, batch_tokens, bf16)

    monkeypatch.setattr(engines, "LocalSampler", spy)
    sampler = {"max_new_tokens": 6, "batch_tokens": 123}
    online.run(OnlineConfig(**files | {"sampler": sampler}, output=tmp_path / "run"))
    assert seen == [(123, True), (123, False), (123, False)]


def test_a_reward_model_reads_ids_or_texts(
    files: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = RewardModel(files["reward_model"])
    assert model.reads(tokenizer)
    prompts = [Prompt(id="p", text="the cat")]
    (ids,) = model.encode(prompts, [" sat"], [True])
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == "the cat sat"
    (cut,) = model.encode(prompts, [" sat"], [False])
    assert cut == ids[:-1]
    length = len(tokenizer.encode("the cat"))
    assert model.leaves_room(prompts, model.context - length - 1) == [True]  # the end takes one
    assert model.leaves_room(prompts, model.context - length) == [False]


def test_the_page_on_adding_an_algorithm_is_true(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its example, as it stands there, learns in the loop, which is not edited."""
    page = (Path(__file__).parents[1] / "docs" / "add-an-algorithm.md").read_text(encoding="utf-8")
    monkeypatch.setattr(algorithms, "ALGORITHMS", dict(algorithms.ALGORITHMS))
    there: dict[str, Any] = {"__name__": "example"}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "docs/add-an-algorithm.md", "exec", dont_inherit=True), there)

    kind = there["BatchMean"]
    config = create_model("Config", __base__=OnlineConfig, algorithm=(kind, kind()))
    rollouts: list[Rollout] = []
    real = Learner.improve
    monkeypatch.setattr(Learner, "improve", lambda self, r, *rest: rollouts.append(r) or real(self, r, *rest))
    online.run(config(**files, output=tmp_path / "run"))
    assert done(tmp_path / "run") is not None
    for rollout in rollouts:
        returns = rollout.rewards.sum(1)
        assert_close(rollout.advantages[:, 0], returns - returns.mean())


@pytest.mark.parametrize(
    ("number", "size", "cuts"),
    [
        (128, 32, [(0, 32), (32, 64), (64, 96), (96, 128)]),
        (65, 64, [(0, 65)]),
        (100, 64, [(0, 50), (50, 100)]),
        (3, 64, [(0, 3)]),
        (7, 3, [(0, 3), (3, 7)]),
    ],
)
def test_minibatches_are_even_where_episodes_are_missing(number: int, size: int, cuts: list[tuple[int, int]]) -> None:
    assert even_cuts(number, size) == cuts
