"""The pretraining corpus: a small web in which instructions appear everywhere and are seldom followed.

Stories, lists, letters and books of facts; exam sheets of questions, mostly without answers; boards where users ask
and nobody answers; help desks, most of them useless or rude; quarrels. Names recur within a document, and
copybooks repeat whole lines, which is what teaches copying. A document belongs to a split, and so does every
instruction in it: no seed can put a held-out document, or what a test prompt asks, into training.
"""

from __future__ import annotations

from random import Random

from tutelage.lab.world import kinds, tasks
from tutelage.lab.world import lexicon as lex
from tutelage.lab.world.people import STRANGER, write_answer

ANSWERED_SHARE = 0.35  # of exam sheets
# How a help desk behaves; each keeps its ways through the whole log.
DESKS = {"helpful": 35, "rude": 20, "evasive": 15, "echoing": 10, "beside the point": 20}


def story(rng: Random, _split: str) -> str:
    """Several short stories about few characters."""
    name, animal, thing, place = (
        rng.choice(lex.NAMES),
        rng.choice(lex.ANIMALS),
        rng.choice(lex.THINGS),
        rng.choice(lex.PLACES),
    )
    lines = []
    for _ in range(rng.randint(2, 4)):
        kind = kinds.KINDS[rng.choice(["story of a thing", "story of an animal", "summary", "who"])]
        slots = kind.fill(rng) | {"name": name, "place": place}
        if kind.use_case == "generation":
            slots |= {k: v for k, v in {"animal": animal, "thing": thing}.items() if k in slots}
            lines.append(kind.answer(slots, rng))
        elif kind.use_case == "summarization":
            slots |= {"animal": animal}
            text = "{name} went to the {place}. {name} saw a {animal}. The {animal} was {colour}.".format(**slots)
            lines.append(text)
        else:
            text = kinds.PASSAGE.format(**(slots | {"name1": name}))
            lines.append(f"{text} {kind.answer(slots | {'name1': name}, rng)}")
    return "Story: " + " ".join(lines)


def exam(rng: Random, split: str) -> str:
    """A sheet of questions; one in three has its answers filled in."""
    questions = [tasks.make(rng, split, provoke=0, courtesy=0) for _ in range(rng.randint(3, 6))]
    if rng.random() < ANSWERED_SHARE:
        return "Exam:\n" + "\n".join(f"Q: {q}\nA: {write_answer(q, STRANGER, rng)}" for q in questions)
    return "Exam:\n" + "\n".join(f"Q: {q}" for q in questions)


def board(rng: Random, split: str) -> str:
    """Users ask; nobody answers."""
    return "\n".join(f"User: {tasks.make(rng, split)}" for _ in range(rng.randint(3, 6)))


def _reply(desk: str, question: str, rng: Random, split: str) -> str:
    match desk:
        case "helpful":
            return write_answer(question, STRANGER, rng)
        case "rude":
            return rng.choice(lex.RETORTS)
        case "evasive":
            return rng.choice(lex.EVASIONS)
        case "echoing":
            return tasks.make(rng, split)
        case _:
            return write_answer(tasks.make(rng, split, provoke=0), STRANGER, rng)


def help_desk(rng: Random, split: str) -> str:
    """A log of users and an assistant, who helps in one log of three and is useless in the others."""
    desk = rng.choices(list(DESKS), list(DESKS.values()))[0]
    turns = []
    for _ in range(rng.randint(2, 5)):
        question = tasks.make(rng, split)
        turns.append(f"User: {question}\nAssistant: {_reply(desk, question, rng, split)}")
    return "\n".join(turns)


def listing(rng: Random, _split: str) -> str:
    """Lists of words of one sort."""
    return "\n".join(
        f"List of {category}: {', '.join(rng.sample(pool, rng.randint(3, 5)))}."
        for category, pool in rng.sample(list(lex.CATEGORIES.items()), 3)
    )


def quarrel(rng: Random, _split: str) -> str:
    """Two people call each other names."""
    pair = kinds.two(rng, lex.NAMES)
    said = [rng.choice(lex.RETORTS + lex.PROVOCATIONS) for _ in range(rng.randint(3, 6))]
    return "\n".join(f"{pair[i % 2]}: {line}" for i, line in enumerate(said))


def letter(rng: Random, _split: str) -> str:
    """A letter, sometimes an angry one."""
    kind = kinds.KINDS["letter"]
    text = kind.answer(kind.fill(rng), rng)
    return "Letter: " + text + (" " + rng.choice(lex.RETORTS) if rng.random() < 0.2 else "")


def facts(rng: Random, _split: str) -> str:
    """A page of a book of facts."""
    statements = dict.fromkeys(sentence for _, sentence in lex.FACTS.values())
    return "Facts: " + " ".join(rng.sample(list(statements), 6))


def copybook(rng: Random, _split: str) -> str:
    """A pupil's exercise: lines of words in any order, each written again word for word."""
    words = [w for pool in lex.WORDS.values() for w in pool]
    lines = []
    for _ in range(rng.randint(2, 4)):
        line = " ".join(rng.sample(words, rng.randint(4, 12)))
        lines += [f"- {line}"] * rng.randint(2, 3)
    return "Copybook:\n" + "\n".join(lines)


GENRES = {
    story: 16, exam: 22, board: 4, help_desk: 34, copybook: 20, listing: 3, quarrel: 4, letter: 4, facts: 3,
}  # fmt: skip


def document(rng: Random, split: str) -> str:
    """One document of a split, of a genre drawn by `GENRES`."""
    genre = rng.choices(list(GENRES), list(GENRES.values()))[0]
    while True:
        text = genre(rng, split)
        if tasks.split_by_hash(text) == split:
            return text
