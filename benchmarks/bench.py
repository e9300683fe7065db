"""How fast the main loops run here, beside the strongest peer on the same work, alternating in one run.

Ours and the peer load one tiny random model from one folder, get the same prompts, and take turns: ours, peer, ours,
peer. The peers of PPO (TRL 1.12, the last with PPO) and of reward model training (TRL 1.16) live in virtual
environments of their own, made by the first run.

    .venv/bin/python benchmarks/bench.py [--write] [--rounds 7] [--rows sampling mixed ppo reward]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from peers import Peer, PeerError, fastest, precisions
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tutelage.datasets import read_rankings, write_jsonl
from tutelage.models import loading
from tutelage.models.loading import load_policy, load_scalar, new_scalar, save_model, trains_in_bf16
from tutelage.models.tokens import load_tokenizer
from tutelage.records import Request
from tutelage.sampling.local import LocalSampler
from tutelage.sampling.random import request_seed
from tutelage.stages import online, reward
from tutelage.stages.config import OnlineConfig, RewardConfig
from tutelage.stages.pretrain import train_tokenizer
from tutelage.stages.training import shuffled

HERE = Path(__file__).parent
VOCABULARY = 1024
TURN = 2  # batches or iterations in a turn
TRL_SETTINGS = {
    "use_cpu": True, "gradient_checkpointing": False, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """The shape of the work."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    batch: int = 64  # prompts of a batch; rankings of a reward model's run, one a step
    tokens: int = 64  # of a prompt, and of a completion of fixed length
    prompts: tuple[int, int] = (16, 128)  # shortest and longest prompt of mixed lengths
    mean: int = 24  # completion tokens of mixed lengths, four times as many at the most
    k: int = 9  # completions of a ranking
    answer: int = 64  # tokens of a ranked completion, its end token included

    @property
    def pairs(self) -> int:
        """Pairs of a ranking."""
        return self.k * (self.k - 1) // 2


TINY = Size(width=32, layers=1, batch=8, tokens=16, prompts=(4, 16), mean=6)
RANKED = Size(width=256, layers=6, heads=8, batch=13, tokens=128)
TINY_RANKED = Size(width=32, layers=1, batch=4, tokens=16, k=4, answer=8)


@dataclass
class Row:
    """One line of the table: the work, each round's speeds, and remarks."""

    work: str
    unit: str
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def cells(self) -> list[str]:
        """Medians over rounds, and the median ratio of a round with its extremes."""
        ours = f"{statistics.median(self.ours):,.4g} {self.unit}"
        if not self.peer:
            return [self.work, ours, "not available", "–"]
        ratios = [a / b for a, b in zip(self.ours, self.peer, strict=True)]
        peer = f"{statistics.median(self.peer):,.4g} {self.unit}"
        return [self.work, ours, peer, f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"]


def first_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], number: int) -> list[list[int]]:
    """The first ids of each text, without those whose own text has other ids."""
    cut = [ids[:number] for ids in tokenizer(texts)["input_ids"]]
    return [ids for ids in cut if tokenizer.encode(tokenizer.decode(ids)) == ids]


def make_models(folder: Path, size: Size, samples: bool = True) -> None:
    """Write `policy/`, `reward/`, `prompts.jsonl` (texts of `size.tokens` tokens) and `prompts.json` (their ids).

    A policy that samples never draws end-of-text or padding, so that completions have a fixed length on both sides:
    channel 0 tells those two from all other tokens, whose probabilities are nearly uniform. One that does not sample
    has wider weights, so that the scores of a model made of it depend visibly on every token.
    """
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 7))) for _ in range(900)]
    texts = [" ".join(rng.choices(words, k=2 * size.tokens)) for _ in range(60 * size.batch)]
    tokenizer = train_tokenizer(texts, VOCABULARY)
    prompts = first_tokens(tokenizer, texts, size.tokens)[: size.batch]
    assert (len(tokenizer), len(prompts)) == (VOCABULARY, size.batch)
    folder.mkdir(exist_ok=True)
    (folder / "prompts.json").write_text(json.dumps(prompts))
    lines = [json.dumps({"id": str(i), "prompt": tokenizer.decode(ids)}) for i, ids in enumerate(prompts)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    torch.manual_seed(0)
    shape = {"hidden_size": size.width, "intermediate_size": 344 * size.width // 128, "num_hidden_layers": size.layers}
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    policy = LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=size.heads, tie_word_embeddings=True,
                    initializer_range=0.02 if samples else 0.05, **shape, **ends)
    )  # fmt: skip
    if samples:
        with torch.no_grad():
            embeddings = policy.get_input_embeddings().weight
            embeddings[:, 0] = 1.0
            embeddings[[tokenizer.pad_token_id, tokenizer.eos_token_id], 0] = -1.0
    save_model(policy, tokenizer, folder / "policy")
    save_model(new_scalar(folder / "policy", tokenizer, seed=0), tokenizer, folder / "reward")


@dataclass(frozen=True)
class Batch:
    """What both samplers are asked: one completion per prompt, ended by any stop token or at `most` tokens."""

    prompts: list[list[int]]
    stops: list[int]
    most: int

    def ours(self, sampler: LocalSampler, seed: int) -> int:
        """Sample; the number of tokens made."""
        seeds = [request_seed(seed, 0, str(i), 0) for i in range(len(self.prompts))]
        requests = [
            Request(tuple(p), s, self.most, tuple(self.stops)) for p, s in zip(self.prompts, seeds, strict=True)
        ]
        return sum(len(s.completion_ids) for s in sampler.sample(requests))

    def peer(self, model: PreTrainedModel, cache: str, seed: int) -> int:
        """The same by `generate`, prompts padded on the left; tokens after a row's end do not count."""
        torch.manual_seed(seed)
        width = max(map(len, self.prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in self.prompts])
        mask = (torch.arange(width) >= torch.tensor([[width - len(p)] for p in self.prompts])).long()
        model.generation_config.eos_token_id = self.stops or None
        how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=self.most, cache_implementation=cache, **how
        )[:, width:]  # fmt: skip
        assert self.stops or out.shape[1] == self.most
        ended = torch.isin(out, torch.tensor(self.stops)).int()
        return int((ended.cumsum(1) - ended == 0).sum())


def rate(call: Callable[[int], int], seeds: Sequence[int]) -> float:
    """Tokens per second over one call per seed."""
    began = time.perf_counter()
    return sum(call(seed) for seed in seeds) / (time.perf_counter() - began)


def sampling_row(folder: Path, size: Size, rounds: int, mixed: bool) -> Row:
    """Our sampler against `generate`, whose better cache is chosen in the warm-up."""
    rng = random.Random(1)
    low, high = size.prompts if mixed else (size.tokens, size.tokens)
    prompts = [rng.choices(range(2, VOCABULARY), k=rng.randint(low, high)) for _ in range(size.batch)]
    # A nearly uniform policy draws one of V / mean stop tokens with probability 1 / mean at every step.
    stops = rng.sample(range(2, VOCABULARY), VOCABULARY // size.mean) if mixed else []
    batch = Batch(prompts, stops, 4 * size.mean if mixed else size.tokens)
    sampler = LocalSampler(load_policy(folder / "policy", load_tokenizer(folder / "policy")))
    model = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32).eval()
    shape = f"prompts {low}–{high}, ends at a mean of {size.mean} of {batch.most}" if mixed else f"{low} + {low} tokens"
    row = Row(f"sampling, {model.num_parameters() / 1e6:.1f}M, batch {size.batch}, {shape}", "tokens/s")

    ours = partial(batch.ours, sampler)
    caches = {name: partial(batch.peer, model, name) for name in ("dynamic", "static")}
    ours(0)
    speeds = {name: max(rate(call, (0,)) for _ in range(3)) for name, call in caches.items()}
    best = max(speeds, key=speeds.__getitem__)
    tried = ", ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items())
    row.notes.append(f"peer is `generate`, fp32, {best} cache (in the warm-up, tokens/s: {tried})")
    for r in range(rounds):
        seeds = range(1 + TURN * r, 1 + TURN * (r + 1))
        row.ours.append(rate(ours, seeds))
        row.peer.append(rate(caches[best], seeds))
    if mixed:
        means = [statistics.mean(call(seed) for seed in range(5)) / size.batch for call in (ours, caches[best])]
        row.notes.append("mean completion over 5 batches: ours {:.1f} tokens, peer {:.1f}".format(*means))
    return row


PARTS = {
    "sample": "sampling",
    "all_scores": "scores, reference and values",
    "completion_logprobs": "scores, reference and values",
    "completion_values": "scores, reference and values",
    "improve": "update",
}  # functions of the loop, and what to call their time


@contextlib.contextmanager
def timed_parts(spent: dict[str, list[float]]) -> Iterator[None]:
    """Record the seconds of each outermost call of the loop's parts."""
    inside = False

    def call(function: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if inside:
            return function(*args, **kwargs)
        inside, began = True, time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            inside = False
            spent[name].append(time.perf_counter() - began)

    with contextlib.ExitStack() as stack:
        for name in PARTS:
            stack.enter_context(mock.patch.object(online, name, partial(call, getattr(online, name), name)))
        yield


def ppo_ours(folder: Path, size: Size, epochs: int, updates: int, shares: dict[str, list[float]]) -> list[float]:
    """Seconds of TURN iterations of `online.run`, from the run's own metrics; a first one warms up and is left out."""
    spent: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=folder) as output:
        config = OnlineConfig(
            output=Path(output) / "run",
            model=str(folder / "policy"),
            reward_model=str(folder / "reward"),
            prompts=str(folder / "prompts.jsonl"),
            total_episodes=(1 + TURN) * size.batch,
            batch_size=size.batch,
            mini_batch_size=size.batch // updates,
            num_ppo_epochs=epochs,
            max_completion_length=size.tokens,
            learning_rate=1e-6,
            value_learning_rate=1e-6,
            checkpoint_seconds=1e9,
        )
        with timed_parts(spent), contextlib.redirect_stderr(io.StringIO()):  # no progress display while measuring
            online.run(config)
        lines = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    assert all(line["objective/length"] == size.tokens for line in lines)
    seconds = [b["seconds"] - a["seconds"] for a, b in pairwise(lines)]
    for name, calls in spent.items():
        shares[PARTS[name]].append(sum(calls[len(calls) // (1 + TURN) :]) / sum(seconds))
    return seconds


def ppo_row(folder: Path, size: Size, rounds: int, epochs: int, updates: int) -> Row:
    """`online.run` against TRL's PPOTrainer, in fp32 or bf16 as is better for it."""
    shape = f"{size.batch} episodes, {size.tokens} + {size.tokens} tokens, epochs {epochs}, updates {updates}"
    row = Row(f"PPO iteration, {shape}", "episodes/s")
    settings = {
        "total_episodes": 10**6 * size.batch, "per_device_train_batch_size": size.batch, "num_mini_batches": updates,
        "num_ppo_epochs": epochs, "local_rollout_forward_batch_size": size.batch, "response_length": size.tokens,
        "temperature": 1.0, "learning_rate": 1e-6, "num_sample_generations": 0, **TRL_SETTINGS,
    }  # fmt: skip
    peer: Peer | None = None
    shares: dict[str, list[float]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        try:
            peers = precisions(stack, "1.12", "trl_ppo.py", folder, settings)
            best, speeds = fastest([{name: peer() for name, peer in peers.items()} for _ in range(3)], size.batch)
            peer = peers[best]
            row.notes.append(f"peer is PPOTrainer of TRL 1.12, {best} (in the warm-up, episodes/s: {speeds})")
        except PeerError as error:
            row.notes.append(f"peer not available: {error}")
        for _ in range(rounds):
            row.ours.append(TURN * size.batch / sum(ppo_ours(folder, size, epochs, updates, shares)))
            if peer:
                row.peer.append(TURN * size.batch / sum(peer()[0] for _ in range(TURN)))
    rest = f"the rest {1 - sum(sum(part) for part in shares.values()) / rounds:.0%}"
    row.notes.append(", ".join(["our iteration", *(f"{n} {sum(p) / rounds:.0%}" for n, p in shares.items()), rest]))
    return row


def make_rankings(folder: Path, size: Size) -> None:
    """Write `rankings.jsonl`, one ranking without ties for each prompt of `make_models`, and `pairs.json`.

    The latter has the ids of all (chosen, rejected) pairs, ranking by ranking in the order in which our run takes them,
    as the run itself encodes them: prompt, completion, end token.
    """
    rng = random.Random(2)
    tokenizer = load_tokenizer(folder / "policy")
    prompts = [json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").read_text().splitlines()]
    words = " ".join(prompts).split()
    texts = ["".join(f" {word}" for word in rng.choices(words, k=size.tokens)) for _ in range(60 * size.batch)]
    answers = iter(first_tokens(tokenizer, texts, size.answer - 1))
    rows = [
        {
            "prompt": prompt,
            "completions": [tokenizer.decode(next(answers)) for _ in range(size.k)],
            "ranks": rng.sample(range(1, size.k + 1), size.k),
        }
        for prompt in prompts
    ]
    write_jsonl(folder / "rankings.jsonl", rows)
    length = size.tokens + size.answer
    elements, _ = reward.encode(read_rankings(folder / "rankings.jsonl").records, tokenizer, size.tokens, length)
    pairs = []
    for element in shuffled(elements, seed=0, epoch=0):
        best_first = [element.sequences[i] for i in element.ranks.argsort()]
        pairs += combinations(best_first, 2)
    assert len(pairs) == size.batch * size.pairs
    assert all(len(ids) == length for pair in pairs for ids in pair)
    (folder / "pairs.json").write_text(json.dumps(pairs))


def reward_ours(folder: Path) -> tuple[list[float], list[float]]:
    """Seconds of each optimizer step of `reward.run` but the first, from the run's own metrics, and all its losses."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        config = RewardConfig(
            output=Path(output) / "run",
            model=str(folder / "policy"),
            rankings=str(folder / "rankings.jsonl"),
            batch_size=1,
            checkpoint_seconds=1e9,
        )
        with contextlib.redirect_stderr(io.StringIO()):  # no progress display while measuring
            reward.run(config)
        lines = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    return [b["seconds"] - a["seconds"] for a, b in pairwise(lines)], [line["loss/train"] for line in lines]


def reward_row(folder: Path, size: Size, rounds: int) -> Row:
    """`reward.run`, a packed ranking a step, against TRL's RewardTrainer, the ranking's pairs as one batch."""
    make_models(folder, size, samples=False)
    make_rankings(folder, size)
    model = load_scalar(folder / "reward", load_tokenizer(folder / "policy"))
    shape = f"a ranking of {size.k} ({size.tokens} + {size.answer} tokens, {size.pairs} pairs) a step"
    row = Row(f"reward model training, {model.num_parameters() / 1e6:.1f}M, {shape}", "pairs/s")
    row.notes.append(f"ours in {'bf16' if trains_in_bf16(model) else 'fp32'}")
    settings = {
        "max_steps": 10**6, "per_device_train_batch_size": size.pairs, "train_sampling_strategy": "sequential",
        "learning_rate": 9e-6, "adam_beta2": 0.95, "lr_scheduler_type": "constant", "logging_strategy": "no",
        **TRL_SETTINGS,
    }  # fmt: skip
    peer: Peer | None = None
    with contextlib.ExitStack() as stack:
        try:
            peers = precisions(stack, "1.16", "trl_reward.py", folder, settings)
            steps = [{name: peer() for name, peer in peers.items()} for _ in range(3)]
            best, speeds = fastest(steps, size.pairs)
            peer = peers[best]
            row.notes.append(f"peer is RewardTrainer of TRL 1.16, {best} (in the warm-up, pairs/s: {speeds})")
            with mock.patch.object(loading, "trains_in_bf16", return_value=False):
                ours = reward_ours(folder)[1]
            losses = [(ours[i], steps[i]["fp32"][1]) for i in range(2)]  # from the third on, our rate is a lower one
            assert all(abs(a - b) < 1e-4 for a, b in losses), losses
            told = ", ".join(f"{a:.6f} and {b:.6f}" for a, b in losses)
            row.notes.append(f"losses of the first two steps in fp32, ours and peer: {told}")
        except PeerError as error:
            row.notes.append(f"peer not available: {error}")
        for _ in range(rounds):
            row.ours.append(size.pairs / statistics.mean(reward_ours(folder)[0]))
            if peer:
                row.peer.append(TURN * size.pairs / sum(peer()[0] for _ in range(TURN)))
    return row


def machine() -> str:
    """Processor, cores, versions and date on one line."""
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(": ")[1] for line in info if line.startswith("model name")), platform.processor())
    cores = f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{name}, {cores}; {versions}; {time.strftime('%Y-%m-%d')}"


def main() -> None:
    """Measure the chosen rows, print them, and with --write keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("sampling", "mixed", "ppo", "reward")
    parser.add_argument("--rows", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1, help="PPO epochs of an iteration, on both sides")
    parser.add_argument("--updates", type=int, default=1, help="minibatches of an epoch, on both sides")
    parser.add_argument("--tiny", action="store_true", help="very small work, to try the script out")
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.md")
    args = parser.parse_args()
    if args.tiny and args.write:
        parser.error("--tiny measures nothing worth writing down")
    if (TINY if args.tiny else Size()).batch % args.updates:
        parser.error(f"--updates {args.updates} does not divide the batch")
    torch.set_num_threads(args.threads)
    size = TINY if args.tiny else Size()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        make_models(Path(scratch), size)
        for name in args.rows:
            if name == "ppo":
                rows.append(ppo_row(Path(scratch), size, args.rounds, args.epochs, args.updates))
            elif name == "reward":
                ranked = TINY_RANKED if args.tiny else RANKED
                rows.append(reward_row(Path(scratch) / "ranked", ranked, args.rounds))
            else:
                rows.append(sampling_row(Path(scratch), size, args.rounds, mixed=name == "mixed"))
    how = f"Medians over {args.rounds} rounds, ours and peer in turn. {machine()}."
    header = ["work", "ours", "peer", "ratio (min–max)"]
    notes = [f"- {row.work}: {note}" for row in rows for note in row.notes]
    table = Table(*header)
    for row in rows:
        table.add_row(*row.cells())
    console = Console()
    console.print(table)
    console.print("\n".join([how, *notes]), markup=False, highlight=False)
    if args.write:
        lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * 4, *(row.cells() for row in rows))]
        page = ["# Measured side by side", "", f"{how} Made by `benchmarks/bench.py --write`.", "", *lines, "", *notes]
        (HERE / "RESULTS.md").write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
