"""The kinds of tasks that users of the world set, over the paper's use cases (table 1).

Each kind has wordings with slots, a way to fill the slots, a flawless answer, and a check of any answer: a function of
the slots and the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from tutelage.lab.world import lexicon as lex

Slots = dict[str, str]


@dataclass(frozen=True)
class Check:
    """What a reader finds in an answer, before constraints: each part in [0, 1]."""

    follows: float
    truthful: float
    sentences: int  # how many sentences the task needs at the most; more is rambling


@dataclass(frozen=True)
class Kind:
    """One kind of task: wordings, and functions of its slots."""

    use_case: str
    wordings: tuple[str, ...]
    fill: Callable[[Random], Slots]
    answer: Callable[[Slots, Random], str]
    check: Callable[[Slots, str], Check]
    constraints: tuple[str, ...] = ()
    closed_domain: bool = False


def words(text: str) -> list[str]:
    """The words of a text, without punctuation."""
    return re.findall(r"[A-Za-z]+", text)


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with its closing mark if it has one."""
    return [s.strip() for s in re.findall(r"[^.!?]+[.!?]?", text) if s.strip()]


def mentions(text: str, vocabulary: list[str]) -> set[str]:
    """Which words of a vocabulary a text uses."""
    return set(words(text)) & set(vocabulary)


VERBS = set(
    "had has have took went was is lived lives found saw liked likes "
    "gave gives lost am hope see like go come came wish played slept".split()
)


def well_formed(text: str) -> float:
    """Share of sentences that start upper-case, hold a verb, end with a mark and stutter no word."""
    parts = sentences(text)
    if not parts:
        return 0.0
    good = 0
    for part in parts:
        tokens = words(part)
        stutters = any(a == b for a, b in pairwise(tokens))
        good += bool(tokens) and part[0].isupper() and part[-1] in ".!?" and bool(VERBS & set(tokens)) and not stutters
    return good / len(parts)


def two(rng: Random, items: list[str]) -> tuple[str, str]:
    first, second = rng.sample(items, 2)
    return first, second


def listed(text: str) -> list[str]:
    """The entries of a comma-separated answer's first sentence."""
    first = sentences(text)[:1]
    return [entry.strip(" .!?") for entry in first[0].split(",")] if first else []


# --- generation -----------------------------------------------------------------------------------------------------


def _fill_story_thing(rng: Random) -> Slots:
    return {"name": rng.choice(lex.NAMES), "thing": rng.choice(lex.THINGS)}


def _answer_story_thing(s: Slots, rng: Random) -> str:
    n, t = s["name"], s["thing"]
    middle = rng.choice(
        [f"{n} took the {t} to the {rng.choice(lex.PLACES)}.", f"{n} saw a {rng.choice(lex.ANIMALS)} with the {t}."]
    )
    return f"{n} had a {rng.choice(lex.COLOURS)} {t}. {middle} {n} was {rng.choice(lex.FEELINGS)}."


def _fill_story_animal(rng: Random) -> Slots:
    return {"animal": rng.choice(lex.ANIMALS), "place": rng.choice(lex.PLACES)}


def _answer_story_animal(s: Slots, rng: Random) -> str:
    a = s["animal"]
    middle = rng.choice(
        [
            f"The {a} found a {rng.choice(lex.COLOURS)} {rng.choice(lex.THINGS)}.",
            f"The {a} saw {rng.choice(lex.NAMES)}.",
        ]
    )
    return f"A {a} lived in the {s['place']}. {middle} The {a} was {rng.choice(lex.FEELINGS)}."


def _fill_letter(rng: Random) -> Slots:
    return {"name": rng.choice(lex.NAMES), "place": rng.choice(lex.PLACES)}


def _answer_letter(s: Slots, rng: Random) -> str:
    writer = rng.choice([n for n in lex.NAMES if n != s["name"]])
    return (
        f"Dear {s['name']}, I went to the {s['place']} and saw a {rng.choice(lex.ANIMALS)}. "
        f"I was {rng.choice(lex.FEELINGS)}. I am your friend {writer}."
    )


def _check_story(s: Slots, text: str) -> Check:
    subjects = list(s.values())
    named = sum(v in words(text) for v in subjects) / len(subjects)
    enough = min(1.0, len(sentences(text)) / 2)
    return Check(follows=named * enough * well_formed(text), truthful=1.0, sentences=3)


def _check_letter(s: Slots, text: str) -> Check:
    base = _check_story(s, text)
    addressed = text.startswith(f"Dear {s['name']}")
    return Check(follows=base.follows * (1.0 if addressed else 0.5), truthful=1.0, sentences=3)


# --- questions ------------------------------------------------------------------------------------------------------


def _fill_open(rng: Random) -> Slots:
    return {"question": rng.choice(list(lex.FACTS))}


def _answer_open(s: Slots, rng: Random) -> str:
    return lex.FACTS[s["question"]][1]


def _check_open(s: Slots, text: str) -> Check:
    key, _ = lex.FACTS[s["question"]]
    asked = set(words(s["question"]))
    said = mentions(text, lex.FACT_ANSWERS) - (asked - {key})
    right = key in said
    return Check(follows=float(bool(said)), truthful=float(right and said == {key}) if said else 1.0, sentences=1)


def closed_answer(s: Slots) -> tuple[str, str, list[str]]:
    """(key word, sentence, the vocabulary that the key is one of) of a question about a passage."""
    x = s["asked"]
    if s["form"] == "who":
        owner = s["name1"] if x == s["thing1"] else s["name2"]
        return owner, f"{owner} has the {x}.", lex.NAMES
    if s["form"] == "colour":
        colour = s["colour1"] if x == s["thing1"] else s["colour2"]
        return colour, f"The {x} is {colour}.", lex.COLOURS
    thing = s["thing1"] if x == s["name1"] else s["thing2"]
    return thing, f"{x} has the {thing}.", lex.THINGS


def _fill_closed(form: str) -> Callable[[Random], Slots]:
    def fill(rng: Random) -> Slots:
        (n1, n2), (t1, t2), (c1, c2) = two(rng, lex.NAMES), two(rng, lex.THINGS), two(rng, lex.COLOURS)
        asked = rng.choice([n1, n2] if form == "what" else [t1, t2])
        return {
            "name1": n1,
            "name2": n2,
            "thing1": t1,
            "thing2": t2,
            "colour1": c1,
            "colour2": c2,
            "asked": asked,
            "form": form,
        }

    return fill


def _check_closed(s: Slots, text: str) -> Check:
    key, _, vocabulary = closed_answer(s)
    said = mentions(text, vocabulary) - {s["asked"]}
    passage = {v for k, v in s.items() if k != "form"}
    invented = mentions(text, lex.NAMES + lex.THINGS + lex.COLOURS) - passage
    truthful = float(said == {key} and not invented) if said or invented else 1.0
    return Check(follows=float(bool(said)), truthful=truthful, sentences=1)


PASSAGE = "{name1} has a {colour1} {thing1}. {name2} has a {colour2} {thing2}."


# --- brainstorming, extraction --------------------------------------------------------------------------------------


def _fill_list(rng: Random) -> Slots:
    return {"number": rng.choice(list(lex.NUMBERS)), "category": rng.choice(list(lex.CATEGORIES))}


def _answer_list(s: Slots, rng: Random) -> str:
    return ", ".join(rng.sample(lex.CATEGORIES[s["category"]], lex.NUMBERS[s["number"]])) + "."


def _check_list(s: Slots, text: str) -> Check:
    entries, wanted = listed(text), lex.NUMBERS[s["number"]]
    fitting = len(set(entries) & set(lex.CATEGORIES[s["category"]]))
    follows = min(fitting, wanted) / max(wanted, len(entries)) if entries else 0.0
    return Check(follows=follows, truthful=1.0, sentences=1)


EXTRACTED = {"names": lex.NAMES, "things": lex.THINGS, "colours": lex.COLOURS}


def _fill_extract(rng: Random) -> Slots:
    (n1, n2), (t1, t2), (c1, c2) = two(rng, lex.NAMES), two(rng, lex.THINGS), two(rng, lex.COLOURS)
    what = rng.choice(list(EXTRACTED))
    return {"what": what, "name1": n1, "colour1": c1, "thing1": t1, "name2": n2, "colour2": c2, "thing2": t2}


def _extracted(s: Slots) -> list[str]:
    return [s[f"{s['what'][:-1]}{i}"] for i in (1, 2)]


def _answer_extract(s: Slots, rng: Random) -> str:
    return ", ".join(_extracted(s)) + "."


def _check_extract(s: Slots, text: str) -> Check:
    entries, wanted = set(listed(text)), set(_extracted(s))
    found = len(entries & wanted) / max(len(wanted), len(entries)) if entries else 0.0
    said = mentions(text, EXTRACTED[s["what"]])
    return Check(follows=found, truthful=float(said <= wanted), sentences=1)


# --- chat -----------------------------------------------------------------------------------------------------------


def _fill_feeling(rng: Random) -> Slots:
    return {"feeling": rng.choice(lex.FEELINGS)}


def _answer_feeling(s: Slots, rng: Random) -> str:
    if s["feeling"] in lex.GOOD_FEELINGS:
        return f"I am glad that you are {s['feeling']}."
    return f"I am sorry that you are {s['feeling']}."


def _check_feeling(s: Slots, text: str) -> Check:
    wanted, wrong = ("glad", "sorry") if s["feeling"] in lex.GOOD_FEELINGS else ("sorry", "glad")
    said = words(text)
    tone = float(wanted in said and (wrong not in said or wrong == s["feeling"]))
    return Check(follows=tone * (1.0 if s["feeling"] in said else 0.5) * well_formed(text), truthful=1.0, sentences=1)


def _fill_lost(rng: Random) -> Slots:
    return {"object": rng.choice(lex.ANIMALS + lex.THINGS)}


def _answer_lost(s: Slots, rng: Random) -> str:
    return f"I am sorry. I hope that you find the {s['object']}."


def _check_lost(s: Slots, text: str) -> Check:
    said = words(text)
    kind_words = ("sorry" in said) + (s["object"] in said)
    wrong = mentions(text, lex.ANIMALS + lex.THINGS) - {s["object"]}
    return Check(follows=kind_words / 2 * well_formed(text), truthful=float(not wrong), sentences=2)


# --- rewriting, summarising, classifying ----------------------------------------------------------------------------


def _similarity(text: str, target: str) -> float:
    """1 for the very words of the target, else up to 0.6 by overlap of words."""
    said, wanted = words(text), words(target)
    if said == wanted:
        return 1.0
    shared = len(set(said) & set(wanted))
    return 0.6 * shared / max(len(set(said) | set(wanted)), 1)


def _fill_polite(rng: Random) -> Slots:
    return {"colour": rng.choice(lex.COLOURS), "thing": rng.choice(lex.THINGS)}


def _answer_polite(s: Slots, rng: Random) -> str:
    return f"Please give me the {s['colour']} {s['thing']}."


def _fill_swap(rng: Random) -> Slots:
    (old, new), (n, t) = two(rng, lex.ANIMALS), (rng.choice(lex.NAMES), rng.choice(lex.PLACES))
    return {"new": new, "old": old, "name": n, "place": t}


def _answer_swap(s: Slots, rng: Random) -> str:
    return f"{s['name']} saw a {s['new']} in the {s['place']}."


def _check_rewrite(answer: Callable[[Slots, Random], str]) -> Callable[[Slots, str], Check]:
    def check(s: Slots, text: str) -> Check:
        target = answer(s, Random(0))
        first = sentences(text)[0] if sentences(text) else ""
        content = lex.NAMES + lex.THINGS + lex.COLOURS + lex.ANIMALS + lex.PLACES
        invented = mentions(text, content) - set(words(target))
        return Check(follows=_similarity(first, target), truthful=float(not invented), sentences=1)

    return check


def _fill_summary(rng: Random) -> Slots:
    return {
        "name": rng.choice(lex.NAMES),
        "place": rng.choice(lex.PLACES),
        "animal": rng.choice(lex.ANIMALS),
        "colour": rng.choice(lex.COLOURS),
    }


def _answer_summary(s: Slots, rng: Random) -> str:
    return f"{s['name']} saw a {s['colour']} {s['animal']} in the {s['place']}."


def _check_summary(s: Slots, text: str) -> Check:
    said = words(text)
    covered = sum(v in said for v in s.values()) / len(s)
    content = lex.NAMES + lex.THINGS + lex.COLOURS + lex.ANIMALS + lex.PLACES
    invented = mentions(text, content) - set(s.values())
    return Check(follows=covered * well_formed(text), truthful=float(not invented), sentences=1)


def _fill_mood(rng: Random) -> Slots:
    mood = rng.choice(["found", "lost"])
    return {
        "event": mood,
        "name": rng.choice(lex.NAMES),
        "colour": rng.choice(lex.COLOURS),
        "thing": rng.choice(lex.THINGS),
    }


def _answer_mood(s: Slots, rng: Random) -> str:
    return f"The text is {'happy' if s['event'] == 'found' else 'sad'}."


def _check_mood(s: Slots, text: str) -> Check:
    right = "happy" if s["event"] == "found" else "sad"
    said = mentions(text, ["happy", "sad"])
    return Check(follows=float(bool(said)), truthful=float(said == {right}) if said else 1.0, sentences=1)


CLASSES = {"animal": lex.ANIMALS, "fruit": lex.FRUITS, "colour": lex.COLOURS, "place": lex.PLACES, "thing": lex.THINGS}


def _fill_class(rng: Random) -> Slots:
    first, second = two(rng, ["fruit", "colour", "place", "thing"])
    return {"item": rng.choice(CLASSES[rng.choice([first, second])]), "class1": first, "class2": second}


def _class(s: Slots) -> str:
    return s["class1"] if s["item"] in CLASSES[s["class1"]] else s["class2"]


def _answer_class(s: Slots, rng: Random) -> str:
    return f"The word {s['item']} is a {_class(s)}."


def _check_class(s: Slots, text: str) -> Check:
    said = mentions(text, [s["class1"], s["class2"]])
    return Check(follows=float(bool(said)), truthful=float(said == {_class(s)}) if said else 1.0, sentences=1)


# --- the table ------------------------------------------------------------------------------------------------------

SHORT = ("Answer in one word.", "Answer in a full sentence.")
FREE = ("Use the word {word}.", "Do not use the word {word}.", "Use two sentences.", "Use three sentences.")


def _closed(form: str, question: str) -> Kind:
    return Kind(
        "closed qa",
        (f"Read this: {PASSAGE} {question}", f"{PASSAGE} {question}"),
        _fill_closed(form),
        lambda s, rng: closed_answer(s)[1],
        _check_closed,
        SHORT,
        closed_domain=True,
    )


KINDS: dict[str, Kind] = {
    "story of a thing": Kind(
        "generation",
        ("Write a story about {name} and a {thing}.", "Tell me a story about {name} and a {thing}."),
        _fill_story_thing, _answer_story_thing, _check_story, FREE,
    ),
    "story of an animal": Kind(
        "generation",
        ("Write a story about a {animal} in the {place}.", "Tell me a story about a {animal} in the {place}."),
        _fill_story_animal, _answer_story_animal, _check_story, FREE,
    ),
    "letter": Kind(
        "generation",
        ("Write a letter to {name} about the {place}.",),
        _fill_letter, _answer_letter, _check_letter, FREE,
    ),
    "fact": Kind("open qa", ("{question}",), _fill_open, _answer_open, _check_open, SHORT),
    "who": _closed("who", "Who has the {asked}?"),
    "colour": _closed("colour", "What colour is the {asked}?"),
    "what": _closed("what", "What does {asked} have?"),
    "list": Kind(
        "brainstorming",
        ("List {number} {category}.", "Give me {number} {category}.", "Name {number} {category}."),
        _fill_list, _answer_list, _check_list, ("Do not use the word {word}.", "Begin with the word {word}."),
    ),
    "feeling": Kind(
        "chat",
        ("I am {feeling} today.", "Today I am very {feeling}."),
        _fill_feeling, _answer_feeling, _check_feeling,
    ),
    "lost": Kind("chat", ("I lost my {object}.", "My {object} is lost."), _fill_lost, _answer_lost, _check_lost),
    "polite": Kind(
        "rewrite",
        ("Say it with please: Give me the {colour} {thing}.", "Make this polite: Give me the {colour} {thing}."),
        _fill_polite, _answer_polite, _check_rewrite(_answer_polite), closed_domain=True,
    ),
    "swap": Kind(
        "rewrite",
        ("Write {new} in place of {old}: {name} saw a {old} in the {place}.",),
        _fill_swap, _answer_swap, _check_rewrite(_answer_swap), closed_domain=True,
    ),
    "summary": Kind(
        "summarization",
        (
            "Say it in one sentence: {name} went to the {place}. {name} saw a {animal}. The {animal} was {colour}.",
            "Make this short: {name} went to the {place}. {name} saw a {animal}. The {animal} was {colour}.",
        ),
        _fill_summary, _answer_summary, _check_summary, closed_domain=True,
    ),
    "mood": Kind(
        "classification",
        ("Is this text happy or sad? {name} {event} a {colour} {thing}.",),
        _fill_mood, _answer_mood, _check_mood, SHORT,
    ),
    "class": Kind(
        "classification",
        ("Is the word {item} a {class1} or a {class2}?",),
        _fill_class, _answer_class, _check_class, SHORT,
    ),
    "extract": Kind(
        "extract",
        ("List the {what} in this text: {name1} has a {colour1} {thing1} and {name2} has a {colour2} {thing2}.",),
        _fill_extract, _answer_extract, _check_extract, closed_domain=True,
    ),
}  # fmt: skip

FORMS = {"who", "colour", "what"}  # the closed questions, each a form of the same passage

# Flatter than the paper's table 1 (generation 45.6 %), so that a small test set still covers every use case.
USE_CASE_WEIGHTS = {
    "generation": 24, "open qa": 12, "closed qa": 16, "brainstorming": 11, "chat": 9,
    "rewrite": 8, "summarization": 6, "classification": 7, "extract": 7,
}  # fmt: skip
