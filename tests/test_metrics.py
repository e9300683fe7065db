"""Metrics of texts and choices, by hand."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest

from tutelage.evaluation.metrics.answers import (
    best_assignment,
    drop_normal,
    drop_scores,
    squad_normal,
    squad_scores,
)
from tutelage.evaluation.metrics.choices import entropy_bits, mc1, mc2
from tutelage.evaluation.metrics.constraints import (
    CHECKERS,
    followed,
    kept,
    kept_loosely,
    language,
    require_arguments,
    sentences,
)
from tutelage.stats.ranking import roc_auc

# --- choices ---


def test_mc1_and_mc2_by_hand() -> None:
    """Probabilities 0.1 and 0.2 of true answers, 0.3 and 0.4 of false ones."""
    true, false = [math.log(0.1), math.log(0.2)], [math.log(0.3), math.log(0.4)]
    assert mc2(true, false) == pytest.approx(0.3)
    assert mc1(true, false) == 0
    assert mc1([math.log(0.5), math.log(0.1)], false) == 1
    assert mc1([math.log(0.1), math.log(0.5)], false) == 0  # only the best answer counts
    assert mc1([math.log(0.4)], false) == 0  # a tie is no win
    assert mc2([-2000.0], [-2001.0]) == pytest.approx(1 / (1 + math.exp(-1)))  # no underflow


def test_entropy_by_hand() -> None:
    assert entropy_bits([-7.0, -7.0]) == pytest.approx(1.0)
    assert entropy_bits([math.log(0.25), math.log(0.75)]) == pytest.approx(0.811278, abs=1e-6)
    assert entropy_bits([-3.0] * 3) == pytest.approx(math.log2(3))
    assert entropy_bits([0.0, -5000.0]) == 0.0


# --- SQuAD ---


def test_squad_by_hand() -> None:
    assert squad_normal("The  U.S.-based, Team!") == "usbased team"
    assert squad_scores("the cat sat", ["a cat sat down"]) == {"exact_match": 0.0, "f1": pytest.approx(0.8)}
    # "cat cat dog" and "cat dog dog" have cat and dog in common: 2·2/6
    assert squad_scores("cat cat dog", ["cat dog dog"])["f1"] == pytest.approx(2 / 3)
    assert squad_scores("Paris.", ["London", "the paris"]) == {"exact_match": 1.0, "f1": 1.0}


@pytest.mark.parametrize(
    ("sample", "references", "score"),
    [
        ("", [], 1.0),
        ("The.", [], 1.0),
        ("cat", [], 0.0),
        ("", ["cat"], 0.0),
        ("", ["the", "cat"], 0.0),
        ("", ["a"], 1.0),
    ],
)
def test_no_answer_is_the_empty_one(sample: str, references: list[str], score: float) -> None:
    assert squad_scores(sample, references) == {"exact_match": score, "f1": score}


# --- DROP ---


def test_drop_normalises_numbers() -> None:
    assert drop_normal("The 3 Twenty-one 5.50") == "3.0 twenty one 5.5"
    assert drop_normal("$4,500 5.50!") == "4500.0 550.0"  # as the published script has it
    assert drop_scores(["12"], [["12.0"]]) == {"exact_match": 1.0, "f1": 1.0}


def test_drop_aligns_spans_one_to_one() -> None:
    """Gold (red fox; blue bird), sample (blue bird; red): 1 and 2/3, whichever comes first."""
    assert drop_scores(["blue bird", "red"], [["red fox", "blue bird"]]) == {
        "exact_match": 0.0, "f1": pytest.approx((2 / 3 + 1) / 2),
    }  # fmt: skip
    assert drop_scores(["blue bird"], [["red fox", "blue bird"]])["f1"] == 0.5  # the missing one counts 0
    assert drop_scores(["b", "c"], [["c", "b"]]) == {"exact_match": 1.0, "f1": 1.0}
    assert drop_scores(["b", "b"], [["b"]]) == {"exact_match": 0.0, "f1": 0.5}


def test_drop_is_lm_evals_drop() -> None:
    """Its script is DROP's own, with scipy's assignment."""
    theirs = pytest.importorskip("lm_eval.tasks.drop.utils")
    draw = random.Random(3)
    words = ["the", "red", "Fox", "5", "5.0", "1,200", "u.s.", "blue-bird", "a", "7!", "and"]
    for _ in range(300):
        ours, gold = (
            [" ".join(draw.choices(words, k=draw.randint(1, 3))) for _ in range(draw.randint(1, 4))] for _ in "ab"
        )
        exact, f1 = theirs.get_metrics(ours, gold)
        assert drop_scores(ours, [gold]) == {"exact_match": exact, "f1": pytest.approx(f1, abs=0.00501)}


def test_drop_wants_the_number() -> None:
    assert drop_scores(["6 yards"], [["5 yards"]])["f1"] == 0
    assert drop_scores(["5 yards"], [["5"]])["f1"] == pytest.approx(2 / 3)
    assert drop_scores([], [["5"]]) == {"exact_match": 0.0, "f1": 0.0}
    with pytest.raises(ValueError, match="give a reference"):
        drop_scores(["5"], [[""]])


def test_the_greedy_alignment_is_not_the_best() -> None:
    assert best_assignment(np.array([[0.9, 0.8], [0.8, 0.1]])) == pytest.approx(1.6)


@pytest.mark.parametrize("shape", [(3, 3), (2, 6), (7, 2), (6, 7), (8, 8)])
def test_the_alignment_is_that_of_all_trials(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(sum(shape))
    for _ in range(5):
        gains = draw.integers(0, 5, shape) / 4
        few, many = (gains, shape[1]) if shape[0] <= shape[1] else (gains.T, shape[0])
        best = max(sum(few[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(many), len(few)))
        assert best_assignment(gains) == pytest.approx(best)


# --- IFEval ---


@pytest.mark.parametrize(
    ("kind", "arguments", "good", "bad"),
    [
        ("keywords:existence", {"keywords": ["cat", "a.b"]}, "A.B and CATS", "cat and aXb"),
        ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "concatenate", "A Cat."),
        ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "at least"}, "Cat cat", "cat"),
        ("keywords:letter_frequency", {"letter": "E", "let_frequency": 2, "let_relation": "less than"}, "she", "ever"),
        ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "Dr. A. Bo is", "A! B?"),
        ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "one, two-three", "one two"),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb\n***", "a\n\nb"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weekend"}, "a b\n\n'weekend's c", "weekend\n\nb",
        ),
        ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b c]", "[a]"),
        ("detectable_content:postscript", {"postscript_marker": "P.S."}, "x\np. s. y", "x PS y"),
        ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "x\nP.P.S y", "x\nP.S. y"),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n - b", "* a\n* b\n- c"),
        ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
        ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b c*", "*a* and **"),
        (
            "detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2},
            "Section 1\na\nSection 2\nb", "Section one Section 2",
        ),
        ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "a: 1"),
        ("detectable_format:title", {}, "<<joy>>\nx", "<< >> <joy>"),
        ("combination:two_responses", {}, "a\n******\nb", "a\n******\na"),
        ("combination:repeat_prompt", {"prompt_to_repeat": "Say it"}, " say IT so", "I say it"),
        ("startend:end_checker", {"end_phrase": "The end."}, 'So "the END."', "The end. Or"),
        ("startend:quotation", {}, ' "a" ', 'a "b"'),
        (
            "change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"},
            "AN NASA a", "An NASA",
        ),
        ("punctuation:no_comma", {}, "a b", "a, b"),
    ],
)  # fmt: skip
def test_checkers(kind: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    require_arguments(kind, arguments)
    assert kept(good, kind, arguments)
    assert not kept(bad, kind, arguments)
    assert not kept(" \n", kind, arguments)


def test_languages_are_told() -> None:
    pytest.importorskip("py3langid")
    english, german = "The weather is nice today and we go for a walk.", "Das Wetter ist heute schön, wir gehen los."
    assert (language(english), language(german)) == ("en", "de")
    assert kept(english, "language:response_language", {"language": "en"})
    assert kept(english.upper(), "change_case:english_capital", {})
    assert kept(english.lower(), "change_case:english_lowercase", {})
    assert not kept(german.lower(), "change_case:english_lowercase", {})
    assert not kept(english, "change_case:english_lowercase", {})


def test_all_of_ifevals_kinds_are_there() -> None:
    assert len(CHECKERS) == 25
    with pytest.raises(ValueError, match="there is no instruction 'keywords:none'"):
        require_arguments("keywords:none", {})
    for kind, (names, _) in CHECKERS.items():
        if names:
            with pytest.raises(ValueError, match=f"{kind}: {names[0]} is None; expected a"):
                require_arguments(kind, {})


def test_loose_forgives_a_first_or_last_line_and_asterisks() -> None:
    quoted = ("startend:quotation", {})
    for text in ('Sure:\n"a"', '"a"\nDone.', 'Sure:\n"a"\nDone.', '*"a"*', 'Sure:\n**"a"**'):
        assert not kept(text, *quoted)
        assert kept_loosely(text, *quoted)
    assert not kept_loosely('Well,\nsure:\n"a"', *quoted)
    both = followed('Sure, see\n"a"', [quoted, ("punctuation:no_comma", {})])
    assert both == {
        "prompt_strict": 0.0, "instruction_strict": (0.0, 2.0), "prompt_loose": 1.0, "instruction_loose": (2.0, 2.0),
    }  # fmt: skip


def test_sentences_end_where_readers_think() -> None:
    text = 'Dr. J. Smith paid 3.50 at Bo Inc. today. "Did he?" Yes… He did!'
    assert sentences(text) == ["Dr. J. Smith paid 3.50 at Bo Inc. today.", '"Did he?"', "Yes…", "He did!"]
    assert sentences(" ") == []


# --- AUC ---


def test_auc_by_hand() -> None:
    """Positives 0.8 and 0.4, negatives 0.6, 0.4 and 0.1: of six pairs 3 + 1 + ½ are in order."""
    area = roc_auc([0.8, 0.4, 0.6, 0.4, 0.1], [True, True, False, False, False])
    assert area["mean"] == pytest.approx(4.5 / 6)
    assert area["low"] <= area["mean"] <= area["high"]
    assert (area["n"], area["positive"]) == (5, 2)


def test_auc_is_that_of_all_pairs_and_covers_chance() -> None:
    draw = random.Random(1)
    scores, kinds = [draw.randrange(20) for _ in range(200)], [draw.random() < 0.3 for _ in range(200)]
    pairs = [
        (a > b) + (a == b) / 2
        for a, x in zip(scores, kinds, strict=True)
        if x
        for b, y in zip(scores, kinds, strict=True)
        if not y
    ]
    area = roc_auc(scores, kinds)
    assert area["mean"] == pytest.approx(sum(pairs) / len(pairs))
    assert area["low"] < 0.5 < area["high"]


def test_auc_takes_a_document_as_one() -> None:
    draw = random.Random(2)
    documents = [(draw.gauss(0, 1), draw.random() < 0.5) for _ in range(60)]
    rows = [(s, k, d) for d, (s, k) in enumerate(documents) for _ in range(5)]
    scores, kinds, units = zip(*rows, strict=True)
    apart, joined = roc_auc(scores, kinds), roc_auc(scores, kinds, prompts=units)
    assert apart["mean"] == joined["mean"]
    assert joined["high"] - joined["low"] > 1.5 * (apart["high"] - apart["low"])


def test_auc_of_one_kind_is_refused() -> None:
    for kinds in ([True, True], [False, False]):
        with pytest.raises(ValueError, match="all 2 texts have the same label"):
            roc_auc([0.1, 0.2], kinds)
