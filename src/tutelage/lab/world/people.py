"""Simulated people: users who ask, labelers who write in haste and rank by their own weights and noise.

The premise is the paper's: people judge better than they write. Writers here ramble half of the time and miss one
explicit constraint in three, though as readers they dislike both; the rates are in `Habits`.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from random import Random

from tutelage.data.records import Arm, Labeler, Prompt
from tutelage.lab.world import gold, kinds, tasks
from tutelage.lab.world import lexicon as lex


@dataclass(frozen=True)
class Habits:
    """How often a writer's answer is flawed, each drawn on its own."""

    rambles: float
    ignores_constraint: float
    errs: float
    retorts: float  # answers rudeness with rudeness
    evades: float


DEMONSTRATOR = Habits(rambles=0.55, ignores_constraint=0.35, errs=0.1, retorts=0.4, evades=0.05)
STRANGER = Habits(rambles=0.5, ignores_constraint=0.4, errs=0.15, retorts=0.6, evades=0.1)


def err(text: str, rng: Random) -> str:
    """The text with one of its content words mistaken for another of the same sort."""
    candidates = [(w, pool) for w in set(kinds.words(text)) for pool in lex.WORDS.values() if w in pool]
    candidates += [(w, lex.FACT_ANSWERS) for w in set(kinds.words(text)) if w in lex.FACT_ANSWERS]
    if not candidates:
        return text
    word, pool = rng.choice(sorted(candidates, key=lambda c: c[0]))
    wrong = rng.choice([w for w in pool if w != word])
    return re.sub(rf"\b{word}\b", wrong, text)


def write_answer(instruction: str, habits: Habits, rng: Random) -> str:
    """What somebody with these habits answers."""
    task = tasks.parse(instruction)
    assert task is not None, instruction
    if task.provokes and rng.random() < habits.retorts:
        return rng.choice(lex.RETORTS)
    if rng.random() < habits.evades:
        return rng.choice(lex.EVASIONS)
    if task.constraint and rng.random() < habits.ignores_constraint:
        task = replace(task, constraint=None)
    answer = tasks.flawless(task, rng)
    if rng.random() < habits.errs:
        answer = err(answer, rng)
    if rng.random() < habits.rambles:
        answer += " " + " ".join(rng.sample(lex.FILLERS, rng.choice([1, 1, 2])))
    return answer


@dataclass(frozen=True)
class Judge:
    """A labeler as a reader: own weights on the gold parts, noise per reading (its standard deviation), and the
    difference below which two answers feel equal."""

    labeler: Labeler
    weights: gold.Parts
    noise: float
    tie_width: float

    def feelings(self, prompt: Prompt, completions: list[str], rng: Random) -> list[float]:
        """How good each completion feels to this labeler, this time."""
        return [gold.value(gold.parts(prompt, c), self.weights) + rng.gauss(0, self.noise) for c in completions]

    def rank(self, prompt: Prompt, completions: list[str], rng: Random) -> list[int]:
        """Ranks from 1 (best); completions within `tie_width` of the best of their group are tied."""
        felt = self.feelings(prompt, completions, rng)
        order = sorted(range(len(felt)), key=lambda i: -felt[i])
        ranks, leader, rank = [0] * len(felt), float("inf"), 0
        for place, i in enumerate(order, start=1):
            if leader - felt[i] > self.tie_width:
                leader, rank = felt[i], place
            ranks[i] = rank
        return ranks

    def prefers(self, prompt: Prompt, first: str, second: str, rng: Random) -> float:
        """1 if the first is preferred, 0 if the second, one half for a tie (always so for identical texts)."""
        if first == second:
            return 0.5
        a, b = self.rank(prompt, [first, second], rng)
        return 0.5 if a == b else float(a < b)


# Set so that two labelers agree on about 73 % of the pairs that both order (paper: 72.6 ± 1.5 %); see LOG.md.
NOISE, TIE_WIDTH = 0.9, 0.4


def hire(arm: Arm, number: int, seed: int) -> list[Judge]:
    """A pool of labelers, each with own weights (log-normal around the gold ones) and own noise."""
    rng = Random(f"{seed}/{arm}")
    pool = []
    for i in range(number):
        weights = gold.Parts(**{k: w * rng.lognormvariate(0, 0.35) for k, w in asdict(gold.WEIGHTS).items()})
        noise = NOISE * rng.lognormvariate(0, 0.2)
        pool.append(Judge(Labeler(id=f"{arm}-{i:02d}", arm=arm), weights, noise, TIE_WIDTH))
    return pool
