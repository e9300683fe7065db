"""The nouns refuse what they cannot mean, and a ranking gives the pairs a reader counts by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tutelage.data.records import Completion, Demonstration, Message, Prompt, Ranking, Rating

PROMPT = Prompt(id="p", text="Name a colour.")


def ranking(*ranks: int, texts: str = "abcdefghi") -> Ranking:
    return Ranking(prompt=PROMPT, completions=tuple(Completion(text=t) for t in texts[: len(ranks)]), ranks=ranks)


def test_pairs_are_winner_then_loser_without_ties():
    assert ranking(1, 2).pairs == [(0, 1)]
    assert ranking(2, 1).pairs == [(1, 0)]
    assert ranking(2, 1, 2).pairs == [(1, 0), (1, 2)]
    assert ranking(3, 1, 2).pairs == [(1, 0), (2, 0), (1, 2)]
    assert ranking(1, 1).pairs == []


def test_ranks_may_have_gaps():
    assert ranking(1, 5, 3).pairs == [(0, 1), (0, 2), (2, 1)]


@given(st.lists(st.integers(1, 4), min_size=2, max_size=9))
def test_pairs_number_all_pairs_less_the_tied(ranks):
    tied = sum(ranks.count(r) * (ranks.count(r) - 1) // 2 for r in set(ranks))
    pairs = ranking(*ranks).pairs
    assert len(set(pairs)) == len(pairs) == len(ranks) * (len(ranks) - 1) // 2 - tied
    assert all(ranks[winner] < ranks[loser] for winner, loser in pairs)


def test_comparisons_carry_texts_prompt_and_labeler():
    ranked = ranking(2, 1, 2).model_copy(update={"labeler": "ann"})
    found = ranked.comparisons()
    assert [(c.chosen, c.rejected) for c in found] == [("b", "a"), ("b", "c")]
    assert all(c.prompt == PROMPT for c in found)
    assert {c.labeler for c in found} == {"ann"}


def test_ranks_that_do_not_match_are_refused():
    completions = tuple(Completion(text=t) for t in "abcd")
    with pytest.raises(ValidationError, match="ranks has 3 entries for 4 completions"):
        Ranking(prompt=PROMPT, completions=completions, ranks=(1, 2, 3))
    with pytest.raises(ValidationError, match=r"ranks start at 1 \(best\), found 0"):
        ranking(0, 1)
    with pytest.raises(ValidationError, match="at least 2 items"):
        ranking(1)


@pytest.mark.parametrize("text", ["", (), (Message(role="user", content="a"), "b")])
def test_a_prompt_has_a_text(text):
    with pytest.raises(ValidationError):
        Prompt(id="p", text=text)


def test_a_text_is_a_string_or_messages():
    turns = (Message(role="system", content=""), Message(role="user", content="hi"))
    assert Prompt(id="p", text=turns).text == turns
    assert Prompt(id="p", text=[{"role": "system", "content": ""}, {"role": "user", "content": "hi"}]).text == turns
    assert Prompt(id="p", text="hi").text == "hi"


def test_records_are_frozen_and_refuse_unknown_fields():
    with pytest.raises(ValidationError, match="frozen"):
        PROMPT.text = "other"
    with pytest.raises(ValidationError, match="Extra inputs"):
        Completion(text="a", score=1.0)


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (Prompt, {"id": "", "text": "a"}),
        (Prompt, {"id": "p", "text": "a", "split": "dev"}),
        (Message, {"role": "", "content": "a"}),
        (Completion, {"text": "a", "finish": "eos"}),
        (Demonstration, {"prompt": PROMPT, "completion": ""}),
        (Rating, {"prompt": PROMPT, "completion": Completion(text="a"), "quality": 0}),
        (Rating, {"prompt": PROMPT, "completion": Completion(text="a"), "quality": 8}),
    ],
)
def test_validators_refuse(record, fields):
    with pytest.raises(ValidationError):
        record(**fields)
