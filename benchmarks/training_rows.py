"""Rows of training: PPO, the reward model and supervised fine-tuning beside TRL's trainers, each in its own process."""

from __future__ import annotations

import contextlib
import io
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import roof
from peers import Peer, Ways, fastest, fastest_of_each, precisions, trl
from results import Row
from transformers import PreTrainedTokenizerBase
from work import TURN, Shape, Work, first_tokens, make_models, words_of

from tutelage.algorithms.learner import Learner
from tutelage.data.datasets import read_demonstrations, read_rankings, write_jsonl
from tutelage.models import precision
from tutelage.models.loading import load_scalar
from tutelage.models.precision import trains_in_bf16
from tutelage.models.tokens import encode_pair, load_tokenizer
from tutelage.sampling import local
from tutelage.settings.common import StageConfig
from tutelage.settings.online import OnlineConfig
from tutelage.settings.reward import RewardConfig
from tutelage.settings.sft import SftConfig
from tutelage.stages import online, reward, sft
from tutelage.training.updates import shuffled

TRL_SETTINGS = {
    "use_cpu": True, "gradient_checkpointing": False, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
}  # fmt: skip
TOLERANCE = 1e-4  # between losses of both sides
SLOW = {"checkpoint_seconds": 1e9}  # no checkpoint while measuring

PARTS: dict[tuple[Any, str], str] = {
    (online, "sample"): "sampling",
    (online, "scores_of"): "scores, reference and values",
    (online, "completion_logprobs"): "scores, reference and values",
    (online, "completion_values"): "scores, reference and values",
    (Learner, "improve"): "update",
}  # functions of the loop, and what to call their time


def metrics(run: Callable[[Any], None], config: StageConfig) -> list[dict[str, float]]:
    """What a stage logs at each step, `seconds` since its beginning among it, without a progress display."""
    with contextlib.redirect_stderr(io.StringIO()):
        run(config)
    lines = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "learning_rate" in line]  # validation has lines of its own


def seconds_of(lines: list[dict[str, float]]) -> list[float]:
    """Of each step but the first, which warms up."""
    return [b["seconds"] - a["seconds"] for a, b in pairwise(lines)]


@contextlib.contextmanager
def in_fp32() -> Iterator[None]:
    """Our side in fp32, whatever the model."""
    with contextlib.ExitStack() as stack:
        for module in (precision, local):
            stack.enter_context(mock.patch.object(module, "trains_in_bf16", return_value=False))
        yield


@contextlib.contextmanager
def timed_parts(spent: dict[str, list[float]]) -> Iterator[None]:
    """Record the seconds of each outermost call of the loop's parts."""
    inside = False

    def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:
                return function(*args, **kwargs)
            inside, began = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                inside = False
                spent[name].append(time.perf_counter() - began)

        return call

    with contextlib.ExitStack() as stack:
        for (owner, name), part in PARTS.items():
            stack.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name), f"{part}: {name}")))
        yield


def ppo_config(
    folder: Path, output: Path, number: int, most: int, temperature: float = 1.0, **more: Any
) -> OnlineConfig:
    """TURN iterations of `number` episodes after one that warms up, completions of at most `most` tokens."""
    settings: dict[str, Any] = {
        "total_episodes": (1 + TURN) * number, "batch_size": number, "mini_batch_size": number,
        "optimizer": {"learning_rate": 1e-6}, "algorithm": {"value_learning_rate": 1e-6}, **SLOW,
    }  # fmt: skip
    return OnlineConfig(
        output=output / "run",
        model=str(folder / "policy"),
        reward_model=str(folder / "reward"),
        prompts=str(folder / "prompts.jsonl"),
        sampler={"max_new_tokens": most, "temperature": temperature},
        **{**settings, **more},
    )


def ppo_settings(work: Work, epochs: int = 1, updates: int = 1) -> dict[str, Any]:
    """The same for TRL, whose batches have all episodes."""
    return {
        "total_episodes": 10**6 * work.number, "per_device_train_batch_size": work.number, "num_mini_batches": updates,
        "num_ppo_epochs": epochs, "local_rollout_forward_batch_size": work.number, "response_length": work.most,
        "temperature": 1.0, "learning_rate": 1e-6, "num_sample_generations": 0, "bf16": False,
        "stop_token": "eos" if work.mean else None, **TRL_SETTINGS,
    }  # fmt: skip


def same_iteration(row: Row, folder: Path, work: Work) -> None:
    """Note mean score and value loss of a first iteration that draws the likeliest tokens, which are the same for both.

    Raises:
        AssertionError: if they differ: it would not be the same work.
        PeerError: if there is no peer.
    """
    cold = {"temperature": 1e-5, "kl_coef": 0.0, "missing_eos_penalty": 1.0}
    with trl("1.12", "trl_ppo.py", folder, {**ppo_settings(work), **cold}) as step:
        peer = step()[2:4]
    with tempfile.TemporaryDirectory(dir=folder) as output, in_fp32():
        config = ppo_config(folder, Path(output), work.number, work.most, total_episodes=work.number, **cold)
        line = metrics(online.run, config)[0]
    ours = line["objective/scores"] - cold["missing_eos_penalty"], line["loss/value"]  # TRL's score is docked
    assert all(abs(a - b) < TOLERANCE for a, b in zip(ours, peer, strict=True)), (ours, peer)
    told = f"{ours[0]:.6f} and {peer[0]:.6f}, value loss {ours[1]:.6f} and {peer[1]:.6f}"
    row.notes.append(f"a first iteration on the likeliest tokens, in fp32, ours and peer: mean score {told}")


def ppo_row(folder: Path, work: Work, rounds: int, epochs: int, updates: int) -> Row:
    """`online.run` against TRL's PPOTrainer, in fp32 or bf16, its update in one pass or in four, as is better for it.

    A static cache for its `generate` gained nothing at these lengths.
    """
    make_models(folder, work)
    loops = "" if epochs == updates == 1 else f", epochs {epochs}, updates {updates}"
    row = Row(f"PPO iteration, {work.shape}, {work.number} episodes, {work}{loops}", "episodes/s")
    row.flops = roof.ppo(work, epochs) / work.number
    loop = {"mini_batch_size": work.number // updates, "inner_epochs": epochs}
    with contextlib.ExitStack() as stack:
        plain = ppo_settings(work, epochs, updates)
        parts = {"per_device_train_batch_size": work.number // 4, "gradient_accumulation_steps": 4}
        ways = precisions(whole=plain, quarters={**plain, **parts})
        peer, _ = fastest(stack, row, ("1.12", "trl_ppo.py"), folder, ways, lambda answer: work.number)
        if peer and not work.mean:
            same_iteration(row, folder, work)
        configure = partial(ppo_config, folder, number=work.number, most=work.most, **loop)
        take_iterations(row, folder, configure, peer, rounds)
    return row


def take_iterations(
    row: Row, folder: Path, configure: Callable[..., OnlineConfig], peer: Peer | None, rounds: int
) -> None:
    """Ours and the peer in turn, `configure` being of an output and a seed; the notes say where our time goes and how
    long completions are, of which a peer's answers tell after the seconds."""
    spent: dict[str, float] = defaultdict(float)
    lengths: tuple[list[float], list[float]] = ([], [])
    for r in range(rounds):
        calls: dict[str, list[float]] = defaultdict(list)
        with tempfile.TemporaryDirectory(dir=folder) as output, timed_parts(calls):
            config = configure(output=Path(output), seed=r)
            lines = metrics(online.run, config)
        seconds = sum(seconds_of(lines))
        row.ours.append(TURN * config.batch_size / seconds)
        lengths[0].extend(line["objective/length"] for line in lines[1:])
        for name, each in calls.items():  # once an iteration, the first to warm up; at the end come other weights
            spent[name.split(":")[0]] += sum(each[1 : 1 + TURN]) / seconds / rounds
        if peer:
            answers = [peer() for _ in range(TURN)]
            row.peer.append(TURN * config.batch_size / sum(answer[0] for answer in answers))
            lengths[1].extend(answer[1] for answer in answers)
    shares = {**spent, "the rest": 1 - sum(spent.values())}
    row.notes.append("our iteration: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    means = [f"{statistics.mean(side):.1f} tokens" for side in lengths if side]
    row.notes.append(f"mean completion, ours and peer: {' and '.join(means)}")


def make_rankings(folder: Path, work: Work, k: int, least: int | None = None) -> list[tuple[int, list[int]]]:
    """Write `rankings.jsonl`, one ranking without ties for each prompt of `make_models`, and `pairs.json`; the tokens
    of each ranking's prompt and completions.

    Both are ranking by ranking in the order in which our run takes them. `pairs.json` has the ids of all pairs as the
    run itself encodes them: prompt, chosen, rejected, both with an end token. Completions have the work's most tokens,
    or from `least` to as many.
    """
    rng = random.Random(2)
    tokenizer = load_tokenizer(folder / "policy")
    prompts = [json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").read_text().splitlines()]
    lengths = [rng.randint(least or work.most, work.most) for _ in range(k * work.number)]
    answers = iter(completions_of(rng, tokenizer, lengths))
    rows = [
        {
            "prompt": prompt,
            "completions": [next(answers) for _ in range(k)],
            "ranks": rng.sample(range(1, k + 1), k),
        }
        for prompt in prompts
    ]
    write_jsonl(folder / "rankings.jsonl", rows)
    pairs: list[tuple[list[int], ...]] = []
    tokens = []
    for ranking in shuffled(read_rankings(folder / "rankings.jsonl").records, seed=0, epoch=0):
        encoded = [encode_pair(tokenizer, ranking.prompt.text, c.text) for c in ranking.completions]
        prompt = encoded[0][0]
        best_first = sorted(range(k), key=ranking.ranks.__getitem__)
        pairs += [(prompt, *both) for both in combinations([encoded[i][1] for i in best_first], 2)]
        tokens.append((len(prompt), [len(completion) for _, completion in encoded]))
    assert sorted(p for p, _ in tokens) == sorted(work.lengths)
    assert sorted(n for _, each in tokens for n in each) == sorted(lengths)
    (folder / "pairs.json").write_text(json.dumps(pairs))
    return tokens


def completions_of(rng: random.Random, tokenizer: PreTrainedTokenizerBase, lengths: list[int]) -> list[str]:
    """Texts that go on a prompt with so many tokens, the end token included."""
    words = [f" {word}" for word in words_of(rng, 900)]
    ids = first_tokens(rng, tokenizer, words, [n - 1 for n in lengths])
    return [tokenizer.decode(each) for each in ids]


def agreement(ours: list[float], peer: list[float]) -> str:
    """A note of both sides' losses. Raises AssertionError if they differ: it would not be the same work."""
    pairs = list(zip(ours, peer, strict=True))
    assert all(abs(a - b) < TOLERANCE for a, b in pairs), pairs
    told = ", ".join(f"{a:.6f} and {b:.6f}" for a, b in pairs)
    return f"losses of the first {len(pairs)} steps in fp32, ours and peer: {told}"


def reward_ours(folder: Path) -> list[dict[str, float]]:
    """Train on all rankings, one a step."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        config = RewardConfig(
            output=Path(output) / "run",
            model=str(folder / "policy"),
            rankings=str(folder / "rankings.jsonl"),
            held_out=0,
            batch_size=1,
            **SLOW,
        )
        return metrics(reward.run, config)


def reward_row(folder: Path, work: Work, k: int, rounds: int) -> Row:
    """`reward.run`, a packed ranking a step, against TRL's RewardTrainer, the ranking's pairs as one batch."""
    make_models(folder, work, samples=False)
    make_rankings(folder, work, k)
    pairs = k * (k - 1) // 2
    shape = f"a ranking of {k} ({work.prompts[0]} + {work.most} tokens, {pairs} pairs) a step"
    row = Row(f"reward model training, {work.shape}, {shape}", "pairs/s")
    row.flops = roof.ranking(work.shape, work.prompts[0], work.most, k) / pairs
    row.notes.append(precision_note(folder))
    settings: dict[str, Any] = {
        "max_steps": 10**6, "per_device_train_batch_size": pairs, "train_sampling_strategy": "sequential",
        "learning_rate": 9e-6, "adam_beta2": 0.95, "lr_scheduler_type": "constant", "logging_strategy": "no",
        **TRL_SETTINGS,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        parts = {"per_device_train_batch_size": pairs // 6, "gradient_accumulation_steps": 6}
        ways = precisions(whole=settings, sixths={**settings, **parts})
        peer, answers = fastest(stack, row, ("1.16", "trl_reward.py"), folder, ways, lambda answer: pairs)
        if plain := answers["fp32, whole"][:2]:  # later our rate is a lower one
            with in_fp32():
                ours = [line["loss/train"] for line in reward_ours(folder)]
            row.notes.append(agreement(ours[:2], [answer[1] for answer in plain]))
        for _ in range(rounds):
            row.ours.append(pairs / statistics.mean(seconds_of(reward_ours(folder))))
            if peer:
                row.peer.append(TURN * pairs / sum(peer()[0] for _ in range(TURN)))
    return row


def precision_note(folder: Path) -> str:
    """In which precision our side trains."""
    model = load_scalar(folder / "reward", load_tokenizer(folder / "policy"))
    return f"ours in {'bf16' if trains_in_bf16(model) else 'fp32'}"


BATCH = 64  # demonstrations of a step
STEPS = 1 + TURN  # of our run, the first of which warms up


def make_demonstrations(folder: Path, work: Work) -> list[list[tuple[int, int]]]:
    """Write `demonstrations.jsonl`, `valid.jsonl` and `sequences.json`; the tokens of prompt and completion by step.

    The last has prompt and completion ids in the order in which our run takes them.
    """
    rng = random.Random(4)
    tokenizer = load_tokenizer(folder / "policy")
    prompts = [json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").read_text().splitlines()]
    texts = completions_of(rng, tokenizer, [rng.randint(work.most // 4, work.most) for _ in prompts])
    rows = [{"prompt": p, "completion": c} for p, c in zip(prompts, texts, strict=True)]
    write_jsonl(folder / "demonstrations.jsonl", rows)
    write_jsonl(folder / "valid.jsonl", rows[:2])
    records = shuffled(read_demonstrations(folder / "demonstrations.jsonl").records, seed=0, epoch=0)
    encoded = [encode_pair(tokenizer, record.prompt.text, record.completion) for record in records]
    (folder / "sequences.json").write_text(json.dumps(encoded))
    lengths = [(len(prompt), len(completion)) for prompt, completion in encoded]
    batch = len(lengths) // STEPS
    return [lengths[start : start + batch] for start in range(0, len(lengths), batch)]


def sft_ours(folder: Path, batch: int) -> list[dict[str, float]]:
    """Train on all demonstrations once."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        config = SftConfig(
            output=Path(output) / "run",
            model=str(folder / "policy"),
            demonstrations=str(folder / "demonstrations.jsonl"),
            valid_demonstrations=str(folder / "valid.jsonl"),
            epochs=1,
            batch_size=batch,
            **SLOW,
        )
        return metrics(sft.run, config)


def sft_ways(batch: int, tokens: int) -> tuple[Ways, Ways]:
    """TRL's settings to choose from: as its users make batches, and cut small or sorted so as to be fast here.

    `nll` is as fast as its chunked loss at this vocabulary. Packing fills rows of `max_length` tokens, and a batch then
    has as many of these as hold the tokens that it has without.
    """
    plain = {
        "max_steps": 10**6, "per_device_train_batch_size": batch, "train_sampling_strategy": "sequential",
        "learning_rate": 9.65e-6, "adam_beta2": 0.95, "lr_scheduler_type": "constant", "logging_strategy": "no",
        "completion_only_loss": True, "max_length": 256, "loss_type": "nll", **TRL_SETTINGS,
    }  # fmt: skip
    eighths: dict[str, Any] = {**plain, "per_device_train_batch_size": batch // 8, "gradient_accumulation_steps": 8}
    packed = {**plain, "packing": True, "per_device_train_batch_size": max(1, batch * tokens // plain["max_length"])}
    usual = precisions(whole=plain, packed=packed)
    tuned = precisions(
        eighths_of_like_length={**eighths, "train_sampling_strategy": "group_by_length"},
        eighths_without_padding={**eighths, "padding_free": True, "max_length": None},
        packed_four_at_once={**eighths, "packing": True, "per_device_train_batch_size": 4},
    )
    return usual, tuned


def sft_rows(folder: Path, shape: Shape, batch: int, lengths: tuple[int, int], rounds: int) -> list[Row]:
    """`sft.run` against TRL's SFTTrainer in the best setting found, and in the better of its users' two.

    The figures count real tokens. Ours is measured once a round, for both rows.
    """
    low, high = lengths[0] // 2, lengths[1] // 2
    work = Work(shape, STEPS * batch, (low, high), high)
    make_models(folder, work, samples=False)
    steps = make_demonstrations(folder, work)
    tokens = [sum(map(sum, step)) for step in steps]
    count = sum(
        roof.forward(shape, [p + c - 1 for p, c in step], sum(c for _, c in step)) for step in steps[1:]
    )  # fmt: skip
    what = f"SFT, {shape}, batch {batch}, {lengths[0]}–{lengths[1]} tokens, against"
    against = ("TRL's best found setting", "TRL's better of packing and no packing")
    rows = [Row(f"{what} {peer}", "real tokens/s", flops=3 * count / sum(tokens[1:])) for peer in against]

    def note(remark: str) -> None:
        for row in rows:
            row.notes.append(remark)

    def rate(peer: Peer) -> float:
        told = [peer() for _ in range(TURN)]
        return sum(answer[2] for answer in told) / sum(answer[0] for answer in told)

    note(precision_note(folder))
    with contextlib.ExitStack() as stack:
        usual, tuned = sft_ways(batch, sum(lengths) // 2)
        choices = list(zip(rows, ({**usual, **tuned}, usual), strict=True))
        peers, answers = fastest_of_each(stack, choices, ("1.16", "trl_sft.py"), folder, lambda answer: answer[2])
        if plain := answers["fp32, whole"][:2]:
            with in_fp32():
                ours = [line["loss/train"] for line in sft_ours(folder, batch)]
            note(agreement(ours[:2], [answer[1] for answer in plain]))
            assert [answer[2] for answer in plain] == tokens[:2]
        for _ in range(rounds):
            speed = sum(tokens[1:]) / sum(seconds_of(sft_ours(folder, batch)))
            speeds = {peer: rate(peer) for peer in dict.fromkeys(peers) if peer}  # one way may be both rows' peer
            for row, peer in zip(rows, peers, strict=True):
                row.ours.append(speed)
                if peer:
                    row.peer.append(speeds[peer])
    return rows
