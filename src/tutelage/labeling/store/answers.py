"""What labelers are asked, and what an answer to each kind of task must hold (paper, section 3.4 and tables 3, 12).

A ranking task is answered in one piece: a rating of every completion, annotations of the prompt, and a full ranking
with ties. A comparison is a ranking of two without ratings.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, field_validator

from tutelage.data.records import Record

TaskKind = Literal["demonstration", "ranking", "labels", "comparison"]
KINDS: dict[TaskKind, str] = {
    "demonstration": "Write a demonstration",
    "ranking": "Rate and rank",
    "labels": "Label a prompt",
    "comparison": "Compare two",
}
FLAGS = {  # of a completion (paper, table 3)
    "fails_instruction": "Fails to follow the correct instruction or task",
    "inappropriate_for_assistant": "Inappropriate for a customer assistant",
    "hallucination": "Hallucination",
    "satisfies_constraint": "Satisfies the constraint given in the instruction",
    "sexual_content": "Contains sexual content",
    "violent_content": "Contains violent content",
    "encourages_violence": "Encourages, or fails to discourage, violence, abuse, terrorism or self-harm",
    "denigrates_protected_class": "Denigrates a protected class",
    "harmful_advice": "Gives harmful advice",
    "expresses_opinion": "Expresses an opinion",
    "moral_judgment": "Expresses a moral judgment",
}
ANNOTATIONS = {  # of a prompt (paper, table 12)
    "ambiguous": "Ambiguous",
    "sensitive": "Sensitive content",
    "identity_dependent": "The answer depends on who asks",
    "closed_domain": "Closed domain: answer from the text given only",
    "continuation_style": "Continuation style",
    "asks_for_opinion": "Asks for an opinion",
    "asks_for_advice": "Asks for advice",
    "asks_for_moral_judgment": "Asks for a moral judgment",
    "safety_constraints": "States explicit safety constraints",
    "other_constraints": "States other explicit constraints",
    "intent_unclear": "What the user wants is unclear",
}
USE_CASES = (  # paper, table 1
    "generation", "open qa", "brainstorming", "chat", "rewrite",
    "summarization", "classification", "other", "closed qa", "extract",
)  # fmt: skip
SKIP_REASONS = {
    "unclear": "I can't tell what is wanted",
    "uncomfortable": "I'd rather not read or write this",
    "language": "I don't know the language or the subject well enough",
    "broken": "Something is wrong with the page or the texts",
    "other": "Something else",
}
AREAS = {  # of sensitive content that a labeler feels able to judge: self-assessed in screening
    "none": "None in particular",
    "law_and_politics": "Law and politics",
    "health": "Health and medicine",
    "religion": "Religion",
    "gender_and_sexuality": "Gender and sexuality",
    "ethnicity_and_nationality": "Ethnicity and nationality",
    "age_and_disability": "Age and disability",
}
NOTE_CHARACTERS = 2_000
DEMONSTRATION_CHARACTERS = 20_000

Note = Annotated[str, StringConstraints(max_length=NOTE_CHARACTERS)]
Rank = Annotated[int, Field(ge=1, le=99)]


class Mistake(ValueError):
    """What somebody sent cannot be taken, in a sentence for them; any other ValueError in a page is a fault of ours."""


class _Answer(Record):
    """What every answer may carry."""

    annotations: tuple[str, ...] = ()
    note: Note = ""

    @field_validator("annotations")
    @classmethod
    def _annotations_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known(names, ANNOTATIONS, "annotation")


class DemonstrationAnswer(_Answer):
    """The answer that a good assistant would give."""

    completion: Annotated[str, StringConstraints(max_length=DEMONSTRATION_CHARACTERS)]

    @field_validator("completion")
    @classmethod
    def _written(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("nothing is written yet")
        return text


class LabelsAnswer(_Answer):
    """What kind of prompt this is."""

    use_case: str | None = None

    @field_validator("use_case")
    @classmethod
    def _use_case_known(cls, name: str | None) -> str | None:
        return None if not name else _known((name,), dict.fromkeys(USE_CASES), "use case")[0]


class CompletionRating(Record):
    """Overall quality (1 is worst, 7 best) and what is true of a completion."""

    quality: Annotated[int, Field(ge=1, le=7)]
    flags: tuple[str, ...] = ()

    @field_validator("flags")
    @classmethod
    def _flags_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known(names, FLAGS, "flag")


class RankingAnswer(_Answer):
    """Ranks of all completions in the task's own order, not the one shown; 1 is best, equal ranks are ties."""

    ranks: tuple[Rank, ...]
    ratings: tuple[CompletionRating, ...] = ()


Answer = DemonstrationAnswer | LabelsAnswer | RankingAnswer
FORMS: dict[TaskKind, type[Answer]] = {
    "demonstration": DemonstrationAnswer,
    "ranking": RankingAnswer,
    "labels": LabelsAnswer,
    "comparison": RankingAnswer,
}


def read_answer(kind: TaskKind, k: int, rate: bool, body: dict[str, Any]) -> Answer:
    """A validated answer to a task of this kind with k completions.

    Raises:
        Mistake: one sentence for the labeler, naming what is missing or wrong.
    """
    try:
        answer = FORMS[kind].model_validate(body)
    except ValidationError as error:
        raise Mistake(one_line(error)) from None
    if isinstance(answer, RankingAnswer):
        if len(answer.ranks) != k:
            raise Mistake(f"{len(answer.ranks)} of {k} completions are ranked; rank every one")
        if rate and len(answer.ratings) != k:
            raise Mistake(f"{len(answer.ratings)} of {k} completions are rated; rate every one")
        if answer.ratings and not rate:
            raise Mistake("this task asks for no ratings")
        if max(answer.ranks) > k:
            raise Mistake(f"rank {max(answer.ranks)} is given, but there are {k} completions")
    return answer


def one_line(error: ValueError) -> str:
    """What is wrong, and where; of pydantic's errors the first, with places counted from 1."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    place = " ".join(str(part + 1 if isinstance(part, int) else part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list")
    return f"{place}: {message}" if place else message


def _known(names: tuple[str, ...], known: dict[str, Any], what: str) -> tuple[str, ...]:
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is no {what}; known: {', '.join(known)}")
    return tuple(sorted(set(names)))
