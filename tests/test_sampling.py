"""The local engine against transformers' `generate`, exact distributions, and its own answers in any other batch."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from conftest import KINDS, STORIES, tiny_model
from tutelage.data.records import Demonstration, Message, Prompt, Request, Sample
from tutelage.models import precision
from tutelage.models.cpu import kernels, llama
from tutelage.models.forward import completion_logprobs
from tutelage.models.loading import load_policy
from tutelage.models.tokens import load_tokenizer
from tutelage.sampling import local
from tutelage.sampling.completions import Writer, complete
from tutelage.sampling.local import LocalSampler, choose
from tutelage.sampling.seeds import request_seed, uniforms
from tutelage.settings.sampler import LocalSampling

Stories = tuple[PreTrainedModel, PreTrainedTokenizerBase]
Tiny = Callable[[str], PreTrainedModel]

PROMPTS = [
    "Once upon a time",
    "Tom",
    "The big dog ran to the park and saw a red ball. He",
    "Lily was sad because",
    "One day, a little bird named Tim found a shiny stone. He showed it to his mom and said,",
]


def generated(policy: PreTrainedModel, prompt: Sequence[int], new: int, stops: Sequence[int]) -> tuple[int, ...]:
    """What transformers' own greedy search writes after one prompt, by itself."""
    out = policy.generate(
        torch.tensor([prompt]), max_new_tokens=new, do_sample=False, eos_token_id=list(stops), pad_token_id=0,
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
    )  # fmt: skip
    return tuple(out[0, len(prompt) :].tolist())


def tokens(samples: Sequence[Sample]) -> list[tuple[int, ...]]:
    return [s.completion_ids for s in samples]


def some_ids(n: int, vocabulary: int, seed: int = 0) -> tuple[int, ...]:
    rng = Random(f"{n}/{seed}")
    return tuple(rng.randrange(2, vocabulary) for _ in range(n))


# --- against generate -------------------------------------------------------------------------------------------------


def test_stories_greedy_equals_generate(stories: Stories) -> None:
    policy, tokenizer = stories
    prompts = [tuple(tokenizer.encode(p)) for p in PROMPTS]
    assert len({len(p) for p in prompts}) > 3
    finishes, full_stop = set(), tokenizer.convert_tokens_to_ids(".")
    for stops in [(tokenizer.eos_token_id,), (tokenizer.eos_token_id, full_stop)]:
        samples = LocalSampler(policy).sample([Request(p, 0, 60, stops, temperature=0.0) for p in prompts])
        assert tokens(samples) == [generated(policy, p, 60, stops) for p in prompts]
        for s in samples:
            assert (s.finish == "stop") == (s.completion_ids[-1] in stops)
            assert s.finish == "stop" or len(s.completion_ids) == 60
        finishes |= {s.finish for s in samples}
    assert finishes == {"stop", "length"}


def test_stories_writes_its_published_text(stories: Stories) -> None:
    """llama2.c's run at temperature 0: 256 steps from the start token, a line break at the end."""
    policy, tokenizer = stories
    (sample,) = LocalSampler(policy).sample([Request((tokenizer.bos_token_id,), 0, 256, (1, 2), temperature=0.0)])
    assert tokenizer.decode(sample.completion_ids) + "\n" == (STORIES / "greedy.txt").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_tiny_greedy_equals_generate(kind: str, tiny: Tiny) -> None:
    policy = tiny(kind)
    prompts = [some_ids(n, policy.config.vocab_size) for n in (1, 3, 9, 20, 40)]
    samples = LocalSampler(policy).sample([Request(p, 0, 40, (1,), temperature=0.0) for p in prompts])
    assert tokens(samples) == [generated(policy, p, 40, (1,)) for p in prompts]
    assert len({t for s in samples for t in s.completion_ids}) > 5


# --- a request's answer is its own ------------------------------------------------------------------------------------


def mixed_requests(n: int, vocabulary: int) -> list[Request]:
    rng = Random(0)
    return [
        Request(
            prompt_ids=some_ids(rng.randint(1, 50), vocabulary, i), seed=request_seed(0, 0, str(i), 0),
            max_new_tokens=rng.choice([1, 5, 12, 22]), stop_ids=rng.choice([(), (2,), (2, 26)]),
            temperature=rng.choice([0.0, 0.5, 1.0, 1.3]), top_p=rng.choice([1.0, 1.0, 0.9, 0.3]),
            top_k=rng.choice([0, 0, 1, 5, 40]),
        )
        for i in range(n)
    ]  # fmt: skip


def assert_same(actual: Sequence[Sample], expected: Sequence[Sample]) -> None:
    assert tokens(actual) == tokens(expected)
    assert [s.finish for s in actual] == [s.finish for s in expected]
    for a, b in zip(actual, expected, strict=True):
        assert_close(a.logprobs, b.logprobs, rtol=0, atol=1e-4)


def test_a_request_has_the_same_answer_in_any_batch(stories: Stories) -> None:
    policy, _ = stories
    requests = mixed_requests(120, policy.config.vocab_size)
    together = LocalSampler(policy).sample(requests)
    assert all(len(s.logprobs) == len(s.completion_ids) for s in together)
    alone = [LocalSampler(policy).sample([r])[0] for r in requests]
    assert_same(together, alone)
    order = Random(1).sample(range(120), 120)
    shuffled = LocalSampler(policy).sample([requests[i] for i in order])
    assert_same(shuffled, [together[i] for i in order])
    assert_same(LocalSampler(policy, batch_tokens=400).sample(requests), together)


@pytest.mark.parametrize("kind", KINDS)
def test_tiny_same_answer_in_any_batch(kind: str, tiny: Tiny) -> None:
    policy = tiny(kind)
    requests = mixed_requests(24, policy.config.vocab_size)
    together = LocalSampler(policy).sample(requests)
    assert_same(together, [LocalSampler(policy).sample([r])[0] for r in requests])


@contextlib.contextmanager
def watched(kind: str) -> Iterator[tuple[list[int], list[int]]]:
    """How many prompts are read at a time, and how many rows take each step, by the memory of this kind of model."""
    memory = llama.Memory if kind == "llama" and kernels.available() else local.memory.Memory
    read, steps = [], []

    def reading(self: Any, prompts: Any, copies: Any, of: Any = memory.read) -> torch.Tensor:
        read.append(len(copies))
        return of(self, prompts, copies)

    def stepping(self: Any, tokens: torch.Tensor, *where: torch.Tensor, of: Any = memory.step) -> torch.Tensor:
        steps.append(len(tokens))
        return of(self, tokens, *where)

    with mock.patch.object(memory, "read", reading), mock.patch.object(memory, "step", stepping):
        yield read, steps


BOTH = pytest.mark.parametrize("kind", ["llama", "gpt_neox"])  # with our kernels, and by transformers' modules


@BOTH
def test_places_are_used_again(kind: str, tiny: Tiny) -> None:
    policy = tiny(kind)
    requests = mixed_requests(60, policy.config.vocab_size)
    together = LocalSampler(policy).sample(requests)
    with watched(kind) as (_, steps):
        assert_same(LocalSampler(policy, batch_tokens=5 * 72).sample(requests), together)
    assert max(steps) <= 5
    assert sum(steps) / len(steps) > 3.5  # waiting requests take the places of finished ones


@BOTH
def test_what_memory_held_before_is_never_seen(kind: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny(kind)
    requests = mixed_requests(24, policy.config.vocab_size)
    together = LocalSampler(policy).sample(requests)
    full = torch.full
    monkeypatch.setattr(torch, "empty", lambda *size, dtype=None: full(size, 1, dtype=dtype).mul(float("nan")))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *shape, **how: self.new_full(shape, float("nan")))
    assert_same(LocalSampler(policy).sample(requests), together)


@BOTH
def test_a_prompt_is_read_once_for_all_its_samples(kind: str, tiny: Tiny) -> None:
    policy = tiny(kind)
    prompts = [some_ids(n, policy.config.vocab_size) for n in (5, 30, 6)]
    requests = [Request(p, seed, 9, ()) for seed in range(8) for p in prompts]
    sampler = LocalSampler(policy)
    with watched(kind) as (read, _):
        samples = sampler.sample(requests)
    assert sum(read) == 3
    assert_same(samples, [LocalSampler(policy).sample([r])[0] for r in requests])


def test_a_shared_prompt_outlives_the_sample_that_holds_it(tiny: Tiny) -> None:
    """The first of four samples of a prompt ends at once; waiting requests must not take the place of their prompt."""
    policy = tiny("llama")
    every = tuple(range(policy.config.vocab_size))
    shared = [Request((5, 6, 7, 8, 9, 10), k, 20, every if k == 3 else ()) for k in range(4)]
    requests = [*[Request((30 + i, 31, 32, 33, 34, 35), i, 18, ()) for i in range(4)], *shared]
    together = LocalSampler(policy, batch_tokens=4 * 26).sample(requests)
    assert_same(together, [LocalSampler(policy).sample([r])[0] for r in requests])


@BOTH
def test_without_kernels(kind: str, tiny: Tiny) -> None:
    policy = tiny(kind)
    requests = mixed_requests(24, policy.config.vocab_size)
    together = LocalSampler(policy).sample(requests)
    with mock.patch.object(kernels, "available", return_value=False):
        assert_same(LocalSampler(policy).sample(requests), together)


@pytest.mark.parametrize("kind", KINDS)
def test_fp32_is_exact_where_training_is_in_bf16(kind: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a row gets by itself, which decides close calls, is in fp32 too."""
    policy = tiny(kind)
    requests = mixed_requests(24, policy.config.vocab_size)
    expected = LocalSampler(policy).sample(requests)
    monkeypatch.setattr(local, "NEAR_TIE", 2e-2)
    for module in (precision, local):
        monkeypatch.setattr(module, "trains_in_bf16", lambda _: True)
    assert_same(LocalSampler(policy).sample(requests), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_fill_the_context_may_end_before_others(kind: str, tiny: Tiny) -> None:
    """A finished row that stays in the batch must not be fed positions beyond the model's table."""
    policy = tiny(kind)
    v = policy.config.vocab_size
    requests = [Request(some_ids(120, v), 1, 8, ()), *(Request(some_ids(4, v, i), i, 124, ()) for i in range(5))]
    together = LocalSampler(policy).sample(requests)
    assert [len(s.completion_ids) for s in together] == [8] + 5 * [124]
    assert_same(together, [LocalSampler(policy).sample([r])[0] for r in requests])


def test_no_requests_no_samples(tiny: Tiny) -> None:
    assert LocalSampler(tiny("llama")).sample([]) == []


def test_a_prompt_that_does_not_fit_is_refused(tiny: Tiny) -> None:
    sampler = LocalSampler(tiny("llama"))
    assert len(sampler.sample([Request(some_ids(100, 300), 0, 28, ())])[0].completion_ids) == 28
    with pytest.raises(ValueError, match="a prompt of 100 tokens with 29 new ones does not fit the context of 128"):
        sampler.sample([Request(some_ids(100, 300), 0, 29, ())])
    with pytest.raises(ValueError, match="0 tokens"):
        sampler.sample([Request((), 0, 5, ())])


def test_seeds(tiny: Tiny) -> None:
    policy = tiny("llama")
    same = LocalSampler(policy).sample([Request((5, 6, 7), 3, 20, ())] * 2)
    assert same[0] == same[1]
    many = LocalSampler(policy).sample([Request((5, 6, 7), seed, 20, ()) for seed in range(50)])
    assert len(set(tokens(many))) == 50
    names = [(r, i, p, k) for r in range(3) for i in range(3) for p in ("a", "b") for k in range(3)]
    assert len({request_seed(*n) for n in names}) == len(names)
    assert all(0 <= request_seed(*n) < 1 << 63 for n in names)


def test_stop_ids_are_honoured_and_included(tiny: Tiny) -> None:
    policy = tiny("llama")
    request = Request((5, 6, 7), 3, 30, ())
    (free,) = LocalSampler(policy).sample([request])
    assert free.finish == "length"
    stop = free.completion_ids[7]
    end = free.completion_ids.index(stop) + 1
    # Beside a row that goes on, so that the ended row is computed further and has to be cut.
    stopped, other = LocalSampler(policy).sample([replace(request, stop_ids=(stop, 4)), request])
    assert (stopped.completion_ids, stopped.finish) == (free.completion_ids[:end], "stop")
    assert len(stopped.logprobs) == end
    assert_same([other], [free])


@pytest.mark.parametrize(("kind", "waste"), [("llama", 1.0), ("gpt_neox", 1.2)])
def test_finished_rows_are_dropped(kind: str, waste: float, tiny: Tiny) -> None:
    budgets = list(range(1, 33))
    with watched(kind) as (_, steps):
        LocalSampler(tiny(kind)).sample([Request((5, 6), i, n, ()) for i, n in enumerate(budgets)])
    needed = sum(n - 1 for n in budgets)
    assert needed <= sum(steps) <= waste * needed < len(budgets) * max(budgets)


# --- what is drawn ----------------------------------------------------------------------------------------------------


def first_tokens(policy: PreTrainedModel, n: int, **settings: Any) -> torch.Tensor:
    """How often each token comes first, over n requests that differ in their seeds only."""
    prompt = (3, 5, 7)
    requests = [Request(prompt, request_seed(0, 0, "p", k), 1, (), **settings) for k in range(n)]
    drawn = torch.tensor([s.completion_ids[0] for s in LocalSampler(policy).sample(requests)])
    return drawn.bincount(minlength=policy.config.vocab_size)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    policy, n = tiny_model("llama", 16), 4000
    logits = policy(torch.tensor([[3, 5, 7]])).logits[0, -1].double()
    expected = n * (logits / temperature).softmax(0)
    counts = first_tokens(policy, n, temperature=temperature)
    common = expected > 5
    assert common.sum() > 5
    seen = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    chi2 = ((seen - wanted) ** 2 / wanted.clamp(min=1e-9)).sum()
    assert chi2 < 40  # 15 degrees of freedom: exceeded once in 2,000
    wrong = n * (logits / (1.3 * temperature)).softmax(0)
    assert ((counts - wrong) ** 2 / wrong).sum() > 100  # the bound can tell


@pytest.mark.parametrize("settings", [{"top_k": 3}, {"top_p": 0.7}, {"top_k": 4, "top_p": 0.8}])
def test_only_allowed_tokens_occur(settings: dict[str, Any]) -> None:
    policy, n = tiny_model("llama", 16), 2000
    probs = policy(torch.tensor([[3, 5, 7]])).logits[0, -1].softmax(0)
    allowed = probs.argsort(descending=True)[: settings.get("top_k", 16)]
    share = probs[allowed] / probs[allowed].sum()
    reached = int((share.cumsum(0) < settings.get("top_p", 2.0)).sum()) + 1  # the first set of mass top_p
    allowed = allowed[:reached]
    assert 1 < len(allowed) < 16
    counts = first_tokens(policy, n, **settings)
    assert counts[allowed].sum() == n
    assert (counts[allowed] > 0).all()
    expected = probs[allowed] / probs[allowed].sum()
    assert_close(counts[allowed] / n, expected, rtol=0, atol=0.04)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_are_the_models_own(kind: str, temperature: float, tiny: Tiny) -> None:
    policy = tiny(kind)
    v = policy.config.vocab_size
    requests = [
        Request(some_ids(n, v), n, 5 + n % 9, (1,), temperature=temperature, top_p=0.9 if n % 2 else 1.0)
        for n in range(1, 30)
    ]
    samples = LocalSampler(policy).sample(requests)
    sequences = [[*r.prompt_ids, *s.completion_ids] for r, s in zip(requests, samples, strict=True)]
    table = completion_logprobs(policy, sequences, [len(r.prompt_ids) for r in requests], temperature)
    for row, s in zip(table, samples, strict=True):
        assert_close(torch.tensor(s.logprobs), row[: len(s.logprobs)], rtol=0, atol=1e-4)
        assert (row[len(s.logprobs) :] == 0).all()


# --- near-ties --------------------------------------------------------------------------------------------------------


def one_row(temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, seed: int = 0) -> Any:
    whole = {"index": 0, "seeds": seed, "top_k": top_k, "budget": 1, "step": 0, "position": 1, "place": 0}
    columns = {**whole, "temperature": temperature, "top_p": top_p}
    return local._Rows(**{name: torch.tensor([value]) for name, value in columns.items()})


def test_near_ties_are_flagged() -> None:
    far, near = torch.tensor([[0.0, 2.0, 1.0, -1.0]]), torch.tensor([[0.0, 2.0, 2.0 + 1e-6, -1.0]])
    assert not choose(far, one_row(temperature=0.0))[2]
    assert choose(near, one_row(temperature=0.0))[2]
    # A draw beside the boundary between two tokens: find where the choice flips, then step off it.
    row = one_row(seed=7)

    def chosen(p: float) -> tuple[int, bool]:
        token, _, tie = choose(torch.tensor([[p, 1 - p]], dtype=torch.float64).log().float(), row)
        return int(token), bool(tie)

    low, high = 0.01, 0.99  # of the first token's probability
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if chosen(middle)[0] == 1 else (low, middle)
    assert chosen(low - 1e-6) == (1, True)
    assert chosen(high + 1e-6) == (0, True)
    assert chosen(low - 1e-2) == (1, False)
    assert chosen(high + 1e-2) == (0, False)
    # The k-th and the (k + 1)-th candidate tied; a nucleus whose mass ends within 1e-6 of the cut.
    assert choose(near, one_row(top_k=1))[2]
    probs = torch.tensor([[0.5, 0.3, 0.2]])
    assert choose(probs.log(), one_row(top_p=0.8))[2]
    assert not choose(probs.log(), one_row(top_p=0.7, seed=7))[2]


def test_what_the_row_gets_alone_decides(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny("llama")
    requests = [Request((5, 6, 7), 3, 10, ()), Request((8,), 4, 10, ())]
    free = LocalSampler(policy).sample(requests)
    real, asked = local.choose, []

    def choose_with_doubt(logits: torch.Tensor, rows: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        chosen, logprobs, near = real(logits, rows)
        if len(rows.index) == 1:  # asked alone: the true answer
            asked.append((int(rows.index), int(rows.step)))
            return chosen, logprobs, near
        doubted = (rows.index == 1) & (rows.step == 4)
        return torch.where(doubted, (chosen + 1) % 300, chosen), logprobs, near | doubted  # a wrong answer, in doubt

    monkeypatch.setattr(local, "choose", choose_with_doubt)
    assert_same(LocalSampler(policy).sample(requests), free)
    assert asked == [(1, 4)]


# --- uniform numbers --------------------------------------------------------------------------------------------------


def splitmix64(seed: int, step: int) -> int:
    """Steele, Lea and Flood 2014, in integers without a sign."""
    word = (1 << 64) - 1
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) & word
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
    return z ^ (z >> 31)


def test_uniforms_are_splitmix64() -> None:
    assert splitmix64(0, 0) == 0xE220A8397B1DCDAF  # the published first output for seed 0
    seeds = [0, 1, 42, 2**62 + 12345, 2**63 - 1, request_seed(1, 2, "p", 3)]
    for step in (0, 1, 2, 100, 4095):
        expected = [(splitmix64(s, step) >> 11) / (1 << 53) for s in seeds]
        assert uniforms(torch.tensor(seeds), torch.tensor(step)).tolist() == expected


def test_uniforms_are_uniform_over_steps_and_over_seeds() -> None:
    over_steps = torch.stack([uniforms(torch.tensor([9]), torch.tensor(t))[0] for t in range(10_000)])
    over_seeds = uniforms(torch.arange(10_000), torch.tensor(0))
    for u in (over_steps, over_seeds):
        assert ((u >= 0) & (u < 1)).all()
        distance = (u.sort().values - (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000).abs().max()
        assert distance < 0.02  # Kolmogorov-Smirnov: exceeded once in 1,500
        assert abs(float(torch.corrcoef(torch.stack([u[:-1], u[1:]]))[0, 1])) < 0.04


# --- in bf16 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_draws_from_nearly_the_same_policy(kind: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "trains_in_bf16", lambda _: True)
    policy = tiny(kind)
    before = {name: p.clone() for name, p in policy.named_parameters()}
    requests = [Request(some_ids(n, 320), request_seed(0, 0, str(n), 0), 12, (1,)) for n in (3, 9, 9, 20, 41)]
    samples = LocalSampler(policy, bf16=True).sample(requests)
    assert samples == LocalSampler(policy, bf16=True).sample(requests)
    assert samples != LocalSampler(policy).sample(requests)  # log-probabilities are those of the rounded policy
    sequences = [[*r.prompt_ids, *s.completion_ids] for r, s in zip(requests, samples, strict=True)]
    lengths = [len(r.prompt_ids) for r in requests]
    gaps = {}
    for name, model in (("rounded", local.in_bf16(policy)), ("exact", policy)):
        logprobs = completion_logprobs(model, sequences, lengths)
        pairs = zip(samples, logprobs, strict=True)
        gaps[name] = torch.cat([(torch.tensor(s.logprobs) - e[: len(s.logprobs)]).abs() for s, e in pairs]).mean()
    assert 0 < gaps["rounded"] < 0.05
    assert 0 < gaps["exact"] < 0.1
    assert all(torch.equal(before[name], p) for name, p in policy.named_parameters())


# --- after worked examples --------------------------------------------------------------------------------------------


def chain(vocabulary: int, then: dict[int, int], end: int) -> PreTrainedModel:
    """A policy whose likeliest next token is then[token]: one-hot embeddings, and blocks that do nothing."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=-(-vocabulary // 8) * 8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=False, eos_token_id=end, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight[:, :vocabulary] = torch.eye(vocabulary)
        for token, following in then.items():
            model.lm_head.weight[following, token] = 2.0
    return model


def test_a_line_break_inside_a_token_ends_an_answer(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """The answer is cut before it and whole: a reward model reads it with its end."""
    own = copy.deepcopy(tokenizer)
    own.add_tokens([".\n"])
    word, stop = own.encode("cat", add_special_tokens=False)[0], own.convert_tokens_to_ids(".\n")
    start = own.encode(":", add_special_tokens=False)[0]
    chain(len(own), {start: word, word: stop, stop: word}, 1).save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    own = load_tokenizer(tmp_path)
    shown = (Demonstration(prompt=Prompt(id="a", text="What is one?:"), completion=" One."),)
    writer = Writer("base", load_policy(tmp_path, own), own, shown)
    sampling = LocalSampling(temperature=0, max_new_tokens=9)
    (answer,) = complete(writer, [Prompt(id="b", text="What is two?:")], 0, sampling)
    assert own.decode(answer.prompt_ids) == "What is one?: One.\nWhat is two?:"
    assert (answer.completion.text, answer.completion.finish) == (own.decode([word]) + ".", "stop")
    assert answer.completion_ids == (word, stop)


def test_worked_examples_begin_once(stories: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    policy, tokenizer = stories
    hi, who = (Prompt(id=text, text=(Message(role="user", content=text),)) for text in ("Hi", "Who are you?"))
    ids = Writer("base", policy, tokenizer, (Demonstration(prompt=hi, completion="Hello."),)).prompt_ids(who)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == (
        "User: Hi\nAssistant: Hello.\nUser: Who are you?\nAssistant:"
    )
