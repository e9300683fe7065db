"""SQuAD v2 (Rajpurkar 2018) and DROP (Dua 2019): short answers about a passage, zero-shot or after worked examples.

The prompt is `INSTRUCTION`, then worked examples and the question, each with its passage, as the paper's are
(appendix E). "Not in background" and an empty answer both say that there is no answer. An answer is read up to its
first line break. Differs from DROP's leaderboard: an answer is one span, so that questions with several spans earn part
of their F1 at the most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tutelage.data.sources import DataError
from tutelage.evaluation.benchmarks.protocol import (
    Generation,
    Item,
    Measure,
    Response,
    Scores,
    Task,
    content,
)
from tutelage.evaluation.metrics.answers import drop_scores, squad_normal, squad_scores
from tutelage.settings.benchmarks import BenchmarkConfig

NO_ANSWER = "Not in background."
INSTRUCTION = (
    "Answer each question using information in the preceding background paragraph.\n"
    f'If there is not enough information provided, answer with "{NO_ANSWER}"'
)
LONGEST_ANSWER = 50  # tokens


@dataclass(frozen=True)
class Question:
    """A question about a passage, with its acceptable answers, each a list of spans."""

    id: str
    title: str
    passage: str
    question: str
    answers: list[list[str]]

    @property
    def shown(self) -> str:
        """As it stands in a prompt."""
        title = f"Title: {self.title}\n\n" if self.title else ""
        return f"{title}Background: {self.passage}\n\nQ: {self.question}\n\nA:"

    @property
    def answered(self) -> str:
        """As a worked example."""
        return f"{self.shown} {', '.join(self.answers[0]) if self.answers else NO_ANSWER}"


def items_of(questions: Sequence[Question], config: BenchmarkConfig) -> list[Item]:
    """The questions as items. Worked examples are drawn for each question, from other passages; the questions of a
    passage are one in every interval."""
    items = []
    for q in questions:
        draw, examples = Random(f"{config.seed}/{q.id}"), []
        for _ in range(100 * config.shots):
            each = questions[draw.randrange(len(questions))]
            if each.passage != q.passage and each not in examples:
                examples.append(each)
            if len(examples) == config.shots:
                break
        else:
            if config.shots:
                raise DataError(f"shots={config.shots}: the file has too few other passages to take examples from")
        text = "\n\n".join([INSTRUCTION, *(e.answered for e in examples), q.shown])
        asks = (Generation(text, LONGEST_ANSWER, stops=("\n",)),)
        items.append(Item(q.id, asks, q.answers, "answerable" if q.answers else "unanswerable", q.passage))
    return items


def answer_of(response: Response) -> str:
    """The answer, empty where it says that there is none."""
    text = str(response["texts"][0]).strip()
    return "" if squad_normal(text) == squad_normal(NO_ANSWER) else text


# SQuAD v2


def squad_questions(source: str) -> Iterator[Question]:
    data = content(source)
    try:
        for article in data["data"]:
            for paragraph in article["paragraphs"]:
                for q in paragraph["qas"]:
                    answers = [[str(answer["text"])] for answer in q["answers"]]
                    title = str(article.get("title", "")).replace("_", " ")
                    yield Question(str(q["id"]), title, paragraph["context"].strip(), q["question"].strip(), answers)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{source}: not in SQuAD's layout: {type(error).__name__} {error}") from None


def read_squad(source: str, config: BenchmarkConfig) -> list[Item]:
    return items_of(_some(source, list(squad_questions(source))), config)


def score_squad(item: Item, responses: Sequence[Response]) -> Scores:
    return dict(squad_scores(answer_of(responses[0]), [spans[0] for spans in item.expects]))


# DROP


def drop_answer(answer: Any) -> list[str]:
    """The spans of one of DROP's answers: its number, its spans, or its date."""
    if str(answer.get("number", "")).strip():
        return [str(answer["number"])]
    if answer.get("spans"):
        return [str(span) for span in answer["spans"]]
    date = answer.get("date") or {}
    return [" ".join(part for name in ("day", "month", "year") if (part := str(date.get(name, "")).strip()))]


def drop_questions(source: str) -> Iterator[Question]:
    data = content(source)
    try:
        for name, passage in data.items():
            for number, q in enumerate(passage["qa_pairs"]):
                raw = [q["answer"], *q.get("validated_answers", [])]
                answers = [spans for each in raw if (spans := drop_answer(each))[0]]
                if not answers:
                    raise DataError(f"{source}: {name}: question {number + 1} has no answer")
                identity = str(q.get("query_id") or f"{name}/{number}")
                yield Question(identity, "", passage["passage"].strip(), q["question"].strip(), answers)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{source}: not in DROP's layout: {type(error).__name__} {error}") from None


def read_drop(source: str, config: BenchmarkConfig) -> list[Item]:
    return items_of(_some(source, list(drop_questions(source))), config)


def score_drop(item: Item, responses: Sequence[Response]) -> Scores:
    return dict(drop_scores([answer_of(responses[0])], item.expects))


def _some(source: str, questions: list[Question]) -> list[Question]:
    if not questions:
        raise DataError(f"{source}: holds no question")
    return questions


MEASURES = {"f1": Measure(tax=True), "exact_match": Measure(tax=True)}
SQUAD = Task(read_squad, score_squad, MEASURES, frozenset({11873}))
DROP = Task(read_drop, score_drop, MEASURES, frozenset({9536, 9535}))
