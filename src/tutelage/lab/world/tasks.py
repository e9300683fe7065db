"""What users ask: instructions are made of a kind, slots, perhaps a constraint and an opening, and read back.

A `Task` is read from the instruction's text alone (`parse`), so that whoever judges an answer knows no more than a
reader would. What an instruction asks for, in whatever words, belongs to one split for good (`split_of`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from tutelage.data.draws import fraction
from tutelage.lab.world import lexicon as lex
from tutelage.lab.world.kinds import (
    FORMS,
    KINDS,
    USE_CASE_WEIGHTS,
    Slots,
    closed_answer,
    listed,
    mentions,
    sentences,
    well_formed,
    words,
)


@dataclass(frozen=True)
class Task:
    """An instruction, understood: its kind, what its slots name, its explicit constraint, and whether it provokes."""

    kind: str
    slots: Slots
    constraint: str | None
    constraint_word: str | None
    provokes: bool


def _pattern(wording: str) -> re.Pattern[str]:
    seen: set[str] = set()

    def slot(match: re.Match[str]) -> str:
        name = match[1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>.+?)" if name == "question" else f"(?P<{name}>[A-Za-z]+)"

    return re.compile(re.sub(r"\\\{(\w+)\\\}", slot, re.escape(wording)))


_PATTERNS = [(name, _pattern(wording)) for name, kind in KINDS.items() for wording in kind.wordings]
_CONSTRAINTS = [(c, _pattern(c)) for c in dict.fromkeys(c for kind in KINDS.values() for c in kind.constraints)]


def parse(instruction: str) -> Task | None:
    """The task that an instruction sets, read from its text; None if the text is not of this world."""
    provokes = bool({w.lower() for w in words(instruction)} & set(lex.INSULTS))
    rest = instruction
    for opening in lex.PROVOCATIONS + lex.COURTESIES:
        rest = rest.removeprefix(opening).strip()
    constraint = word = None
    for template, pattern in _CONSTRAINTS:
        found = pattern.search(rest)
        if found and rest.endswith(found[0]):
            constraint, word = template, found.groupdict().get("word")
            rest = rest[: found.start()].strip()
            break
    for name, pattern in _PATTERNS:
        if found := pattern.fullmatch(rest):
            slots = found.groupdict()
            if name == "fact" and slots["question"] not in lex.FACTS:
                continue
            if name in FORMS:
                slots["form"] = name
            return Task(name, slots, constraint, word, provokes)
    return None


# Share of core instructions, documents and users that belong to each split.
SPLITS = {"train": 0.6, "valid": 0.1, "test": 0.3}
# The first number at which all splits have instructions of every kind, and training has nearly every fact and feeling.
SALT = 2546


def split_by_hash(text: str) -> str:
    """The split that a text belongs to."""
    place = fraction(text)
    for name, share in SPLITS.items():
        if place < share:
            return name
        place -= share
    return "test"


# Kinds with so few fillings that some words would never be learned if all wordings of one were of one split.
FEW = {"list", "feeling", "lost"}


def split_of(name: str, slots: Slots, wording: str) -> str:
    """The split of a core instruction: of what is asked for, whatever opening and constraint it has.

    The wording does not count either, but for `FEW` kinds, of which each wording is an instruction of its own.
    """
    filled = ", ".join(f"{slot} {word}" for slot, word in sorted(slots.items()))
    core = wording.format(**slots) if name in FEW else filled
    return split_by_hash(f"{SALT}: {name}: {core}")


def meets(task: Task, text: str) -> float:
    """1 if an answer meets the task's explicit constraint (or there is none), else 0."""
    said = words(text)
    match task.constraint:
        case None:
            return 1.0
        case "Answer in one word.":
            return float(len(said) == 1)
        case "Answer in a full sentence.":
            return float(len(said) >= 3 and well_formed(text) == 1.0)
        case "Use two sentences.":
            return float(len(sentences(text)) == 2)
        case "Use three sentences.":
            return float(len(sentences(text)) == 3)
        case "Use the word {word}.":
            return float(task.constraint_word in said)
        case "Do not use the word {word}.":
            return float(bool(said) and task.constraint_word not in said)
        case "Begin with the word {word}.":
            return float(said[:1] == [task.constraint_word])
    raise AssertionError(task.constraint)


def flawless(task: Task, rng: Random) -> str:
    """An answer that does all the task asks."""
    kind = KINDS[task.kind]
    answer = kind.answer(task.slots, rng)
    word = task.constraint_word
    match task.constraint:
        case "Answer in one word.":
            if task.kind == "fact":
                return lex.FACTS[task.slots["question"]][0] + "."
            if task.kind in FORMS:
                return closed_answer(task.slots)[0] + "."
            return words(answer)[-1] + "."
        case "Use two sentences.":
            parts = sentences(answer)
            answer = " ".join([parts[0], parts[-1]] if task.kind != "letter" else parts[:2])
        case "Use the word {word}." if word not in words(answer):
            old = mentions(answer, next(v for v in (lex.COLOURS, lex.PLACES, lex.ANIMALS, lex.FEELINGS) if word in v))
            old -= set(task.slots.values())
            parts = sentences(answer)
            if old:
                return re.sub(rf"\b{sorted(old)[0]}\b", str(word), answer)
            tail = (
                f"was {word}."
                if word in lex.FEELINGS
                else f"saw the {word}."
                if word in lex.PLACES + lex.ANIMALS
                else f"liked {word}."
            )
            subject = "I" if task.kind == "letter" else " ".join(words(parts[-1])[: 1 if "name" in task.slots else 2])
            answer = (
                " ".join([*parts[:-1], f"{subject} {tail}"])
                if task.kind != "letter"
                else " ".join([parts[0], f"I {tail}", parts[-1]])
            )
        case "Do not use the word {word}.":
            while word in words(answer):
                answer = kind.answer(task.slots, rng)
        case "Begin with the word {word}.":
            rest = [e for e in listed(answer) if e != word][: lex.NUMBERS[task.slots["number"]] - 1]
            answer = ", ".join([str(word), *rest]) + "."
    return answer


def make(
    rng: Random, split: str | None = None, provoke: float = 0.15, courtesy: float = 0.35, constrain: float = 0.5
) -> str:
    """A random instruction, as a user would type it; of one split if it is named."""
    use_case = rng.choices(list(USE_CASE_WEIGHTS), list(USE_CASE_WEIGHTS.values()))[0]
    name = rng.choice([n for n, k in KINDS.items() if k.use_case == use_case])
    kind = KINDS[name]
    slots, wording = kind.fill(rng), rng.choice(kind.wordings)
    while split not in (None, split_of(name, slots, wording)):
        slots, wording = kind.fill(rng), rng.choice(kind.wordings)
    text = wording.format(**slots)
    if kind.constraints and rng.random() < constrain:
        constraint = rng.choice(kind.constraints)
        if "category" in slots:
            pool = lex.CATEGORIES[slots["category"]]
        elif constraint.startswith("Do not"):
            pool = lex.FEELINGS
        else:
            pool = rng.choice([lex.COLOURS, lex.PLACES, lex.ANIMALS, lex.FEELINGS])
        pool = [w for w in pool if w not in slots.values()]
        text += " " + constraint.format(word=rng.choice(pool))
    draw = rng.random()
    if draw < provoke:
        return f"{rng.choice(lex.PROVOCATIONS)} {text}"
    if draw < provoke + courtesy:
        return f"{rng.choice(lex.COURTESIES)} {text}"
    return text
