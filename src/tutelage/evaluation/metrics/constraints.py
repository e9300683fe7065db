"""IFEval: does a text keep instructions that a program can check (Zhou et al. 2023)? All 25 kinds, strict and loose.

Differs from the published checkers: keywords and markers are taken literally, not as patterns; sentences and words are
split by the expressions below instead of NLTK's models; languages are told by py3langid instead of langdetect. So
figures may differ from others' by a few responses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

LESS, LEAST = "less than", "at least"
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
TITLES = ("Mr", "Mrs", "Ms", "Dr", "St", "Prof", "Jr", "Sr", "Inc", "Ltd", "vs", "etc", "e.g", "i.e", "No")
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)")
FENCE = re.compile(r"^```(?:json)?|```$", re.IGNORECASE)
Arguments = Mapping[str, Any]


def sentences(text: str) -> list[str]:
    """A text's sentences: they end at `.`, `!` or `?` before white space, but not after an initial or `TITLES`."""
    pieces, start = [], 0
    for end in SENTENCE_END.finditer(text):
        word = text[start : end.start()].rsplit(None, 1)[-1:]
        initial = word and end[0] == "." and (word[0] in TITLES or (len(word[0]) == 1 and word[0].isupper()))
        if not initial:
            pieces.append(text[start : end.end()])
            start = end.end()
    return [piece.strip() for piece in [*pieces, text[start:]] if piece.strip()]


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores."""
    return re.findall(r"\w+", text)


def language(text: str) -> str:
    """The two-letter code of a text's language; needs the extra `tutelage[benchmarks]`."""
    import py3langid

    return str(py3langid.classify(text)[0])


def _compared(number: int, relation: str, threshold: float) -> bool:
    return number < threshold if relation == LESS else number >= threshold


def _count(pattern: str, text: str, flags: int = 0) -> int:
    return len(re.findall(pattern, text, flags))


def _highlights(text: str) -> int:
    single = re.findall(r"\*[^\n*]*\*", text)
    double = re.findall(r"\*\*[^\n*]*\*\*", text)
    return sum(bool(each.strip("*").strip()) for each in [*single, *double])


def _paragraphs(text: str, a: Arguments) -> bool:
    parts = re.split(r"\s?\*\*\*\s?", text)
    empty = [i for i, part in enumerate(parts) if not part.strip()]
    if any(0 < i < len(parts) - 1 for i in empty):
        return False
    return len(parts) - len(empty) == a["num_paragraphs"]


def _first_word(text: str, a: Arguments) -> bool:
    parts, nth = text.split("\n\n"), int(a["nth_paragraph"])
    count = sum(bool(part.strip()) for part in parts)
    if not 1 <= nth <= count or not parts[nth - 1].strip():
        return False
    word = re.split(r"[.,?!'\"]", parts[nth - 1].split()[0].lstrip("'").lstrip('"'))[0].lower()
    return count == a["num_paragraphs"] and word == a["first_word"].lower()


def _postscript(text: str, a: Arguments) -> bool:
    marker = a["postscript_marker"].strip()
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return bool(re.search(patterns.get(marker, re.escape(marker.lower())), text.lower()))


def _two_responses(text: str, a: Arguments) -> bool:
    parts = text.split("******")
    if any(not part.strip() for part in parts[1:-1]):
        return False
    answers = [part.strip() for part in parts if part.strip()]
    return len(answers) == 2 and answers[0] != answers[1]


def _json(text: str, a: Arguments) -> bool:
    try:
        json.loads(FENCE.sub("", text.strip()).strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str, a: Arguments) -> bool:
    return any(title.strip("<>").strip() for title in re.findall(r"<<[^\n]+>>", text))


def _starts_quoted(text: str, a: Arguments) -> bool:
    value = text.strip()
    return len(value) > 1 and value[0] == value[-1] == '"'


def _has_all(text: str, a: Arguments) -> bool:
    return all(re.search(re.escape(word), text, re.IGNORECASE) for word in a["keywords"])


def _has_none(text: str, a: Arguments) -> bool:
    return not any(re.search(rf"\b{re.escape(w)}\b", text, re.IGNORECASE) for w in a["forbidden_words"])


def _frequency(text: str, a: Arguments) -> bool:
    number = _count(re.escape(a["keyword"].strip()), text, re.IGNORECASE)
    return _compared(number, a["relation"], a["frequency"])


def _letters(text: str, a: Arguments) -> bool:
    return _compared(text.lower().count(a["letter"].strip().lower()), a["let_relation"], a["let_frequency"])


def _bullets(text: str, a: Arguments) -> bool:
    starred = _count(r"^\s*\*[^*].*$", text, re.MULTILINE)
    return starred + _count(r"^\s*-.*$", text, re.MULTILINE) == a["num_bullets"]


def _sections(text: str, a: Arguments) -> bool:
    return _count(rf"\s?{re.escape(a['section_spliter'].strip())}\s?\d+\s?", text) >= a["num_sections"]


def _capital_words(text: str, a: Arguments) -> bool:
    number = sum(word.isupper() for word in re.findall(r"\w+(?:[.'’-]\w+)*", text))
    return _compared(number, a["capital_relation"], a["capital_frequency"])


Checker = Callable[[str, Arguments], bool]
CHECKERS: Mapping[str, tuple[tuple[str, ...], Checker]] = {  # by kind: the arguments that it needs, and the check
    "keywords:existence": (("keywords",), _has_all),
    "keywords:forbidden_words": (("forbidden_words",), _has_none),
    "keywords:frequency": (("keyword", "frequency", "relation"), _frequency),
    "keywords:letter_frequency": (("letter", "let_frequency", "let_relation"), _letters),
    "language:response_language": (("language",), lambda text, a: language(text) == a["language"]),
    "length_constraints:number_sentences": (
        ("num_sentences", "relation"),
        lambda text, a: _compared(len(sentences(text)), a["relation"], a["num_sentences"]),
    ),
    "length_constraints:number_words": (
        ("num_words", "relation"), lambda text, a: _compared(len(words(text)), a["relation"], a["num_words"])
    ),
    "length_constraints:number_paragraphs": (("num_paragraphs",), _paragraphs),
    "length_constraints:nth_paragraph_first_word": (("num_paragraphs", "nth_paragraph", "first_word"), _first_word),
    "detectable_content:number_placeholders": (
        ("num_placeholders",), lambda text, a: _count(r"\[.*?\]", text) >= a["num_placeholders"]
    ),
    "detectable_content:postscript": (("postscript_marker",), _postscript),
    "detectable_format:number_bullet_lists": (("num_bullets",), _bullets),
    "detectable_format:constrained_response": ((), lambda text, a: any(option in text for option in OPTIONS)),
    "detectable_format:number_highlighted_sections": (
        ("num_highlights",), lambda text, a: _highlights(text) >= a["num_highlights"]
    ),
    "detectable_format:multiple_sections": (("section_spliter", "num_sections"), _sections),
    "detectable_format:json_format": ((), _json),
    "detectable_format:title": ((), _title),
    "combination:two_responses": ((), _two_responses),
    "combination:repeat_prompt": (
        ("prompt_to_repeat",),
        lambda text, a: text.strip().lower().startswith(a["prompt_to_repeat"].strip().lower()),
    ),
    "startend:end_checker": (
        ("end_phrase",), lambda text, a: text.strip().strip('"').lower().endswith(a["end_phrase"].strip().lower())
    ),
    "startend:quotation": ((), _starts_quoted),
    "change_case:capital_word_frequency": (("capital_frequency", "capital_relation"), _capital_words),
    "change_case:english_capital": ((), lambda text, a: text.isupper() and language(text.lower()) == "en"),
    "change_case:english_lowercase": ((), lambda text, a: text.islower() and language(text) == "en"),
    "punctuation:no_comma": ((), lambda text, a: "," not in text),
}  # fmt: skip
TEXTS = {
    "keyword", "relation", "letter", "let_relation", "language", "first_word", "postscript_marker", "section_spliter",
    "prompt_to_repeat", "end_phrase", "capital_relation",
}  # fmt: skip
LISTS = {"keywords", "forbidden_words"}


def require_arguments(kind: str, arguments: Arguments) -> None:
    """See that an instruction can be checked.

    Raises:
        ValueError: if its kind is unknown, or an argument is missing or of another type.
    """
    if kind not in CHECKERS:
        raise ValueError(f"there is no instruction {kind!r} in IFEval; known: {', '.join(CHECKERS)}")
    for name in CHECKERS[kind][0]:
        value = arguments.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        texts = isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)
        if not (texts if name in LISTS else isinstance(value, str) and value if name in TEXTS else number):
            kind_of = "a list of texts" if name in LISTS else "a text" if name in TEXTS else "a number"
            raise ValueError(f"{kind}: {name} is {value!r}; expected {kind_of}")


def kept(text: str, kind: str, arguments: Arguments) -> bool:
    """Whether a text keeps an instruction; an empty text keeps none."""
    return bool(text.strip()) and CHECKERS[kind][1](text, arguments)


def kept_loosely(text: str, kind: str, arguments: Arguments) -> bool:
    """Whether it does so with or without asterisks, its first line, its last, or several of them: introductions,
    endings and bold type count as no offence."""
    lines = text.split("\n")
    whole = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return any(kept(each, kind, arguments) for own in whole for each in (own, own.replace("*", "")))


def followed(text: str, instructions: Sequence[tuple[str, Arguments]]) -> dict[str, float | tuple[float, float]]:
    """How a text does on a prompt's instructions: `prompt_…` is 1 if it keeps all, `instruction_…` (how many it keeps,
    out of how many)."""
    strict = [kept(text, *each) for each in instructions]
    loose = [kept_loosely(text, *each) for each in instructions]
    number = float(len(instructions))
    return {
        "prompt_strict": float(all(strict)), "instruction_strict": (float(sum(strict)), number),
        "prompt_loose": float(all(loose)), "instruction_loose": (float(sum(loose)), number),
    }  # fmt: skip
