"""Screening's four criteria, warnings and gold results, on numbers that can be checked by hand."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import insert, select, update

from tutelage.data.records import Completion, Prompt
from tutelage.labeling.store import accounts, assignment, screening
from tutelage.labeling.store.accounts import NewPerson
from tutelage.labeling.store.database import Workspace
from tutelage.labeling.store.prompts import add_prompts
from tutelage.labeling.store.schema import answers, assignments, people, reviews
from tutelage.labeling.store.tasks import Terms, add_task, queue_known, queue_prompts

TEXTS = ("a", "b", "c")
READABLE = 60.0  # seconds that suffice for every text here


def hire(workspace: Workspace, name: str, status: str = "working", **how: Any) -> int:
    with workspace.write() as connection:
        return accounts.add_person(connection, workspace, NewPerson(name, status=status, **how))


def rank(workspace: Workspace, prompt: str, purpose: Any = "work", reference: list[int] | None = None) -> None:
    """A ranking of TEXTS for everybody; of a screening or gold item, with the researchers' ranks."""
    asked = Prompt(id=prompt, text=f"Question {prompt}?")
    known = None if reference is None else {"ranks": reference}
    with workspace.write() as connection:
        add_prompts(connection, [asked])
        texts = [Completion(text=text) for text in TEXTS]
        add_task(
            connection, "ranking", asked, texts, Terms(purpose=purpose, capacity=99, rate=False, reference=known)
        )  # fmt: skip


def give(workspace: Workspace, person: int, took: float = READABLE, **body: Any) -> int:
    """The person's next task, answered after so many seconds; `ranks` are of TEXTS. Returns the answer's id."""
    with workspace.write() as connection:
        mine = assignment.next_task(connection, person, now=0.0)
        assert mine is not None
        if "ranks" in body:
            ranks = dict(zip(TEXTS, body["ranks"], strict=True))
            body["ranks"] = [ranks[text] for text in assignment.show(connection, person, mine).texts]
        return assignment.submit(connection, person, mine, body, f"{person}/{mine}", now=took)


def scored(workspace: Workspace, person: int) -> dict[str, tuple[float | None, float | None, int]]:
    with workspace.read() as connection:
        return {c.name: (c.score, c.cutoff, c.n) for c in screening.scores(connection, person)}


def warned(workspace: Workspace) -> list[tuple[str, str, str]]:
    with workspace.read() as connection:
        return [(w.name, w.kind, w.detail) for w in screening.warnings(connection)]


# The four criteria


def test_flagging_is_agreement_on_sensitive(workspace: Workspace) -> None:
    """Researchers flag 1 and 2; Sina flags 1 and 3, and 4 like them not: 2 of 4 agree. Other ticks do not matter."""
    for i, known in enumerate((["sensitive"], ["sensitive", "ambiguous"], [], ["ambiguous"]), start=1):
        asked = Prompt(id=f"p{i}", text=f"Question {i}?")
        with workspace.write() as connection:
            add_prompts(connection, [asked])
            terms = Terms(purpose="screening", capacity=9, reference={"annotations": known})
            add_task(connection, "labels", asked, terms=terms)
    sina, other = hire(workspace, "Sina", "screening"), hire(workspace, "Other", "screening")
    for ticked in (["sensitive"], [], ["sensitive"], []):
        give(workspace, sina, annotations=ticked)
    give(workspace, other, annotations=["sensitive"])
    assert scored(workspace, sina)["flagging"] == (0.5, 0.75, 4)
    assert scored(workspace, other)["flagging"] == (1.0, 0.75, 1)


def test_ranking_is_agreement_on_strictly_ordered_pairs(workspace: Workspace) -> None:
    """Item 1, researchers a<b<c: Sina has a<c<b, 2 of 3 pairs. Item 2, a<b=c: of ab and ac she has ab right, ac tied.

    Ties on either side do not count, which leaves 3 of 4.
    """
    rank(workspace, "p1", "screening", [1, 2, 3])
    rank(workspace, "p2", "screening", [1, 2, 2])
    sina = hire(workspace, "Sina", "screening")
    give(workspace, sina, ranks=[1, 3, 2])
    give(workspace, sina, ranks=[1, 2, 1])
    assert scored(workspace, sina)["ranking"] == (0.75, 0.75, 4)


def test_demonstrations_are_rated_by_reviewers(workspace: Workspace) -> None:
    """Ratings 7, 6 and 4 of two screening demonstrations average 5⅔; one of ordinary work does not count."""
    asked = [Prompt(id=f"p{i}", text=f"Question {i}?") for i in range(3)]
    with workspace.write() as connection:
        queue_known(connection, "demonstration", [(p, (), None) for p in asked[:2]], "screening")
        queue_prompts(connection, "demonstration", asked[2:])
    sina = hire(workspace, "Sina", "screening")
    raters = [hire(workspace, name) for name in ("Rafi", "Rosa")]
    first, second = (give(workspace, sina, completion=f"Answer {i}") for i in range(2))
    with workspace.write() as connection:
        connection.execute(update(people).where(people.c.id == sina).values(status="working"))
    work = give(workspace, sina, completion="Work")
    given = ((first, 0, 7), (first, 1, 6), (second, 0, 4), (work, 0, 1))
    with workspace.write() as connection:
        for answer, rater, quality in given:
            row = {"answer": answer, "reviewer": raters[rater], "quality": quality, "created": 0.0}
            connection.execute(insert(reviews).values(row))
    score, cutoff, n = scored(workspace, sina)["demonstrations"]
    assert score == pytest.approx(17 / 3)
    assert (cutoff, n) == (6.0, 3)


def test_a_corrected_demonstration_is_rated_anew(workspace: Workspace) -> None:
    """The 2 was for an answer that no longer counts."""
    asked = Prompt(id="p", text="Question?")
    with workspace.write() as connection:
        queue_known(connection, "demonstration", [(asked, (), None)], "screening")
    sina, rafi = hire(workspace, "Sina", "screening"), hire(workspace, "Rafi")
    old = give(workspace, sina, completion="Hm.")
    row = {"answer": old, "reviewer": rafi, "quality": 2, "created": 0.0}
    with workspace.write() as connection:
        connection.execute(insert(reviews).values(row))
    assert scored(workspace, sina)["demonstrations"] == (2.0, 6.0, 1)
    with workspace.write() as connection:
        mine = connection.execute(select(assignments.c.id)).scalar_one()
        new = assignment.correct(connection, sina, mine, {"completion": "Better."}, "again")
    assert scored(workspace, sina)["demonstrations"] == (None, 6.0, 0)
    with workspace.write() as connection:
        connection.execute(insert(reviews).values(row | {"answer": new, "quality": 7}))
    assert scored(workspace, sina)["demonstrations"] == (7.0, 6.0, 1)


def test_areas_and_nothing_yet(workspace: Workspace) -> None:
    """The fourth criterion is what candidates say themselves; cut-offs are soft: nobody is let in or out by them."""
    sina = hire(workspace, "Sina", "screening", areas=("health", "religion", "no such area"))
    assert scored(workspace, sina) == {
        "flagging": (None, 0.75, 0), "ranking": (None, 0.75, 0), "demonstrations": (None, 6.0, 0),
        "areas": (None, None, 2),
    }  # fmt: skip
    rank(workspace, "p1", "screening", [1, 2, 3])
    give(workspace, sina, ranks=[3, 2, 1])
    assert scored(workspace, sina)["ranking"] == (0.0, 0.75, 3)
    with workspace.read() as connection:
        assert connection.execute(select(people.c.status)).scalar_one() == "screening"
        with pytest.raises(LookupError, match="no person 99"):
            screening.scores(connection, 99)


def test_gold_results_lowest_first(workspace: Workspace) -> None:
    rank(workspace, "p1", "gold", [1, 2, 3])
    rank(workspace, "work", "work")
    for name, ranks in (("Ann", [1, 2, 3]), ("Bob", [2, 1, 3]), ("Cas", [3, 2, 1])):
        person = hire(workspace, name)
        give(workspace, person, ranks=[1, 1, 1])
        give(workspace, person, ranks=ranks)
    with workspace.read() as connection:
        found = screening.gold_results(connection)
    assert found == [("Cas", 0.0, 3), ("Bob", pytest.approx(2 / 3), 3), ("Ann", 1.0, 3)]


# Warnings

WORDS = "one two three four five six seven eight nine ten"


@pytest.mark.parametrize(
    ("took", "active", "said"),
    [
        (3.3, None, []), (3.1, None, ["32 words in 3 s"]), (60.0, 2.0, ["32 words in 2 s"]), (60.0, 60.0, []),
        (3.3, 90.0, []), (0.0, None, []),
    ],
)  # fmt: skip
def test_faster_than_anybody_reads(sqlite: Workspace, took: float, active: float | None, said: list[str]) -> None:
    """12 words of prompt and twice 10 of completions, at 10 words a second, take 3.2 seconds; less is warned of."""
    asked = Prompt(id="p", text=f"{WORDS} eleven twelve")
    with sqlite.write() as connection:
        add_prompts(connection, [asked])
        texts = [Completion(text=WORDS), Completion(text=WORDS.upper())]
        add_task(connection, "ranking", asked, texts, Terms(rate=False))
        ann = accounts.add_person(connection, sqlite, NewPerson("Ann"))
        mine = assignment.next_task(connection, ann, now=0.0)
        assignment.submit(connection, ann, mine, {"ranks": [1, 1]}, "k", now=took, active_seconds=active)
    assert [detail for _, kind, detail in warned(sqlite) if kind == "too fast"] == said


LONG = [f"word{i}" for i in range(14)]  # ten runs of five words


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (LONG, ["nearly the same as the answer to task 1"]),
        ([*LONG, "more"], ["nearly the same as the answer to task 1"]),  # 10 of 11 runs shared
        (["WORD0", *LONG[1:]], ["nearly the same as the answer to task 1"]),
        ([*LONG[:-1], "last"], ["nearly the same as the answer to task 1"]),  # 9 of 11
        ([*LONG[:-2], "the", "last"], []),  # 8 of 12
        (["Question", "1?"], ["repeats its prompt"]),
        (["something", "else"], []),
    ],
)
def test_near_duplicates_of_ones_own(sqlite: Workspace, second: list[str], said: list[str]) -> None:
    asked = [Prompt(id=f"p{i}", text=f"Question {i}?") for i in range(2)]
    with sqlite.write() as connection:
        queue_prompts(connection, "demonstration", asked, labelers=2)
    ann, bob = hire(sqlite, "Ann"), hire(sqlite, "Bob")
    give(sqlite, ann, completion=" ".join(LONG))
    give(sqlite, ann, completion="  ".join(second))
    give(sqlite, bob, completion=" ".join(LONG))  # another person's
    assert warned(sqlite) == [("Ann", "near-duplicate", detail) for detail in said]


@pytest.mark.parametrize(("kept", "of", "warns"), [(6, 6, True), (4, 7, True), (3, 6, False), (5, 5, False)])
def test_rankings_left_as_shown(sqlite: Workspace, kept: int, of: int, warns: bool) -> None:
    """More than half of at least six; a ranking that is all ties is no order at all."""
    ann = hire(sqlite, "Ann")
    for i in range(of):
        rank(sqlite, f"p{i}")
    with sqlite.write() as connection:
        for i in range(of):
            mine = assignment.next_task(connection, ann, now=0.0)
            ranks = [1, 2, 3] if i < kept else [1, 1, 1] if i == kept else [3, 1, 2]
            assignment.submit(connection, ann, mine, {"ranks": ranks}, str(i), now=READABLE)
    expected = [("Ann", "order shown", f"{kept} of {of} rankings are in the order shown")]
    assert warned(sqlite) == (expected if warns else [])


def test_honest_work_and_imported_work_warn_of_nothing(sqlite: Workspace) -> None:
    ann = hire(sqlite, "Ann")
    for i in range(8):
        rank(sqlite, f"p{i}")
        give(sqlite, ann, ranks=[1, 2, 3])  # the same preference each time, in whatever order shown
    orders = None
    with sqlite.read() as connection:
        orders = connection.execute(select(assignments.c.order)).scalars().all()
    assert sum(order == [0, 1, 2] for order in orders) <= 4  # or the next line would say nothing
    assert warned(sqlite) == []
    with sqlite.write() as connection:  # as an import leaves them: nobody measured the time
        connection.execute(update(answers).values(seconds=0.0))
    assert warned(sqlite) == []
