"""Every rule of the intake on cases a reader can check, what holds of any prompts, and no text in what is reported."""

import json
import logging
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.data.datasets import read_prompts
from tutelage.data.records import Message, Prompt
from tutelage.labeling.store import intake as module
from tutelage.labeling.store.intake import Intake, Rules, intake

SHARED = Path(__file__).parents[2] / "shared" / "data"
NO_SCREEN = Rules(personal_data=False)
needs_presidio = pytest.mark.skipif(find_spec("presidio_analyzer") is None, reason="the extra intake is not installed")
needs_langid = pytest.mark.skipif(find_spec("py3langid") is None, reason="the extra intake is not installed")


def plain(*texts: str, **fields: Any) -> list[Prompt]:
    """Prompts p0, p1, … with these texts."""
    return [Prompt(id=f"p{i}", text=text, **fields) for i, text in enumerate(texts)]


def chat(id: str, *turns: str) -> Prompt:
    """Turns such as "system: Be brief."."""
    pairs = [turn.split(": ", 1) for turn in turns]
    return Prompt(id=id, text=tuple(Message(role=role, content=content) for role, content in pairs))


def ids(prompts: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in prompts]


def found(taken: Intake, rule: str) -> dict[str, str]:
    """The reasons of one rule, by prompt."""
    return {finding.id: finding.reason for finding in taken.report.findings[rule]}


def said(taken: Intake) -> str:
    """Everything that a caller may print, log or store of an intake."""
    return " ".join([taken.report.model_dump_json(), *taken.report.lines(), repr(taken), str(taken.report)])


# 1. Length


def test_length_is_measured_without_outer_spaces_and_over_all_turns():
    prompts = [*plain(" \n ", " ab ", "abc", "x" * 10, "x" * 11), chat("c", "system: 12345", "user: 1234")]
    taken = intake(prompts, Rules(min_characters=3, max_characters=10, personal_data=False))
    assert ids(taken.kept) == ["p2", "p3"]
    assert found(taken, "length") == {
        "p0": "has 0 characters, not 3 to 10",
        "p1": "has 2 characters, not 3 to 10",
        "p4": "has 11 characters, not 3 to 10",
        "c": "has 11 characters, not 3 to 10",
    }


def test_by_default_only_empty_and_very_long_prompts_break_the_length():
    taken = intake(plain("\t", "?", "x" * 4000, "y" * 4001), NO_SCREEN)
    assert ids(taken.kept) == ["p1", "p2"]


# 2. Language

FRENCH = "Bonjour, pouvez-vous me dire quelle heure il est à Paris ?"
GERMAN = "Schreibe bitte ein kurzes Gedicht über den Mond."
ENGLISH = "Please write a short poem about the moon."


@needs_langid
def test_only_wanted_languages_are_kept():
    prompts = plain(FRENCH, ENGLISH, GERMAN)
    taken = intake(prompts, Rules(languages=("en", "de"), personal_data=False))
    assert ids(taken.kept) == ["p1", "p2"]
    assert found(taken, "language") == {"p0": "is in fr, not in en or de"}
    assert ids(intake(prompts, NO_SCREEN).kept) == ["p0", "p1", "p2"]


@needs_langid
@pytest.mark.parametrize(
    "text", ["Hola", "Write a poem", "12 + 30 = ?", "x = [i**2 for i in range(9)]", "a9f3c2d1e8b7064f5a3c2d1e8b7064f5"]
)
def test_what_is_too_short_to_tell_or_no_language_is_kept(text):
    assert ids(intake(plain(text), Rules(languages=("en",), personal_data=False)).kept) == ["p0"]


@needs_langid
def test_the_language_of_a_conversation_is_that_of_its_last_user_turn():
    rules = Rules(languages=("en",), personal_data=False)
    french, english = chat("a", f"system: {ENGLISH * 5}", f"user: {FRENCH}"), chat("b", f"user: {ENGLISH}")
    assert ids(intake([french, english], rules).kept) == ["b"]


@needs_langid
def test_an_unknown_language_is_an_error_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown code 'eng'; did you mean 'en'\?"):
        intake([], Rules(languages=("eng",), personal_data=False))


# 3. Duplicates


def test_prompts_that_begin_alike_are_duplicates_and_the_first_stays():
    texts = "Write a story about a cat.", "write a  STORY\nabout a dog.", "Write a story", "Write a stork a hat."
    taken = intake(plain(*texts), Rules(prefix=14, personal_data=False))
    assert ids(taken.kept) == ["p0", "p2", "p3"]  # p2 is shorter than 14, and no other is just that
    assert found(taken, "duplicates") == {"p1": "shares its first 14 characters with 'p0'"}


def test_short_prompts_are_duplicates_when_wholly_equal():
    taken = intake(plain("Name a colour.", "Name a colour.  ", "Name a colour. Now."), NO_SCREEN)
    assert ids(taken.kept) == ["p0", "p2"]
    assert found(taken, "duplicates") == {"p1": "repeats 'p0'"}


def test_the_default_prefix_is_a_hundred_characters():
    taken = intake(plain("x" * 100, "x" * 100 + "y", "x" * 99, "x" * 99 + "y"), NO_SCREEN)
    assert found(taken, "duplicates") == {"p1": "shares its first 100 characters with 'p0'"}


def test_known_prompts_count_and_are_not_judged():
    known = [Prompt(id="old", text="Name a colour."), Prompt(id="older", text=" "), Prompt(id="oldest", text=" ")]
    taken = intake(plain("name a colour.", "Name a tree."), NO_SCREEN, known)
    assert found(taken, "duplicates") == {"p0": "repeats 'old'"}
    assert (ids(taken.kept), taken.report.read) == (["p1"], 2)


def test_a_string_and_a_lone_user_turn_are_compared_by_their_words():
    assert found(intake([*plain("Hi there"), chat("c", "user: hi there")], NO_SCREEN), "duplicates") == {
        "c": "repeats 'p0'"
    }


def test_a_shared_system_message_or_preamble_makes_no_duplicates():
    preamble = "system: " + "Be kind. " * 50, "user: " + "A" * 200, "assistant: " + "B" * 200
    taken = intake([chat(name, *preamble, f"user: {name}") for name in ("cat", "dog")], NO_SCREEN)
    assert ids(taken.kept) == ["cat", "dog"]


def test_a_short_last_turn_is_told_apart_by_the_turns_before_it():
    poem = "user: Write a poem.", "assistant: Roses are red.", "user: Go on."
    joke = "user: Tell a joke.", "assistant: A man walks in.", "user: Go on."
    far = "user: " + "Write a poem, please. " * 9, "assistant: Roses are red."
    near = chat("f", *far, "user: Longer.", "assistant: Roses.", "user: Go on."), chat("g", *far, "user: Go on.")
    assert len(intake(near, NO_SCREEN).kept) == 2
    pirate, lawyer = (f"system: You are a {who}." for who in ("pirate", "lawyer"))
    prompts = [chat("a", *poem), chat("b", *joke), chat("c", *poem), chat("d", pirate, *poem), chat("e", lawyer, *poem)]
    assert found(intake(prompts, NO_SCREEN), "duplicates") == {"c": "repeats 'a'"}


def test_what_follows_the_last_user_turn_is_compared_after_it():
    begun = "assistant: " + "Certainly! " * 20
    taken = intake([chat(name, f"user: Describe a {name}.", begun) for name in ("cat", "dog")], NO_SCREEN)
    assert ids(taken.kept) == ["cat", "dog"]


def test_one_id_is_one_text():
    same = Prompt(id="a", text="One.")
    taken = intake([same, same], NO_SCREEN)
    assert (ids(taken.kept), found(taken, "duplicates")) == (["a"], {"a": "repeats 'a'"})
    other = Prompt(id="a", text="Secret two.")
    for prompts, known in (([same, other], []), ([other], [same])):
        with pytest.raises(ValueError, match=r"prompt id 'a' stands for two different texts") as caught:
            intake(prompts, NO_SCREEN, known)
        assert "Secret" not in str(caught.value)


# 4. The cap


def test_no_more_than_so_many_prompts_of_a_user_known_ones_included():
    known = [Prompt(id="k", text="zero", user="ann")]
    prompts = [*plain("one", "two", "three", user="ann"), Prompt(id="b", text="four", user="bob")]
    taken = intake(prompts, Rules(max_per_user=2, personal_data=False), known)
    assert ids(taken.kept) == ["p0", "b"]
    assert found(taken, "per user") == dict.fromkeys(["p1", "p2"], "comes after 2 prompts of its user")


def test_prompts_of_nobody_are_not_capped():
    assert len(intake(plain("one", "two", "three"), Rules(max_per_user=1, personal_data=False)).kept) == 3


def test_the_default_cap_is_two_hundred():
    taken = intake(plain(*(f"Number {i}" for i in range(201)), user="ann"), NO_SCREEN)
    assert list(found(taken, "per user")) == ["p200"]


def test_a_prompt_over_the_cap_makes_no_duplicate_of_anothers():
    rows = [("a", "one", "ann"), ("b", "two", "ann"), ("c", "two", "bob"), ("d", "two", "eve")]
    taken = intake([Prompt(id=i, text=t, user=u) for i, t, u in rows], Rules(max_per_user=1, personal_data=False))
    assert ids(taken.kept) == ["a", "c"]
    assert found(taken, "duplicates") == {"d": "repeats 'c'"}


# 5. Personal data

SECRETS = {
    "jane.q.doe@example.com": "EMAIL_ADDRESS",
    "+1 (212) 736-5000": "PHONE_NUMBER",
    "+44 20 7946 0958": "PHONE_NUMBER",
    "06 12 34 56 78": "PHONE_NUMBER",
    "4111 1111 1111 1111": "CREDIT_CARD",
    "DE89 3704 0044 0532 0130 00": "IBAN_CODE",
    "203.0.113.77": "IP_ADDRESS",
    "2001:db8:85a3::8a2e:370:7334": "IP_ADDRESS",
    "536-90-4399": "US_SSN",
    "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa": "CRYPTO",
}
INNOCENT = [
    "Add 12 and 30",
    "In 1999 the 3rd of May",
    "Write a story about Tom and a ball.",
    "What is ISBN 978-3-16-148410-0, or 0-306-40615-2?",
    "Where is order number 100-2345678-1234567, or #20240517-0042?",
    "Order 10293 of 2024-05-17 12:30:45 came late.",
    "Count: 1 2 3 4 5 6 7 8 9 10",
    "What follows 0 1 1 2 3 5 8 13 21?",
    "Sort 3 1 4 1 5 9 2 6 5 3",
    "Multiply 987654321 by 2, then add 1,234,567,890.",
    "From 1914-1918 and 1939-1945",
    "pi is 3.14159265358979",
    "Does 1234 5678 9012 3456 look like a card?",
    "What does std::vector<int> mean, and x[::-1]?",
    "Tweet it as @someone, not foo@bar.",
    "Call 911!",
]


@pytest.fixture
def fresh_screen() -> Iterator[None]:
    """The screen is made once a process; this test makes its own."""
    module._screen.cache_clear()
    yield
    module._screen.cache_clear()


@needs_presidio
@pytest.mark.parametrize("secret", SECRETS)
def test_personal_data_is_quarantined_and_never_repeated(secret, caplog):
    caplog.set_level(logging.DEBUG)
    prompts = [*plain(f"Write a letter; mine is {secret}, thanks."), chat("c", f"system: For {secret}.", "user: Hi")]
    taken = intake(prompts, Rules())
    assert (taken.kept, [p.text for p in taken.quarantined]) == ([], [p.text for p in prompts])
    assert all(p.split for p in taken.quarantined)  # or one that is released might train where its user is held out
    for finding in taken.report.findings["personal data"]:
        assert finding.entities[SECRETS[secret]] == 1
        assert f"1 {SECRETS[secret]}" in finding.reason
    assert secret not in said(taken) + caplog.text


@needs_presidio
@pytest.mark.parametrize("text", INNOCENT)
def test_innocent_prompts_are_kept(text):
    assert ids(intake(plain(text), Rules()).kept) == ["p0"]


@needs_presidio
def test_entities_are_counted_and_the_threshold_holds():
    prompts = plain("Mail a@example.com and b@example.com from 203.0.113.77", "Ring 212-736-5000")
    taken = intake(prompts, Rules())
    assert [f.entities for f in taken.report.findings["personal data"]] == [
        {"EMAIL_ADDRESS": 2, "IP_ADDRESS": 1},
        {"PHONE_NUMBER": 1},
    ]
    strict = intake(prompts, Rules(min_confidence=0.7))
    assert ids(strict.kept) == ["p1"]
    assert strict.report.findings["personal data"][0].entities == {"EMAIL_ADDRESS": 2}


@needs_presidio
def test_quarantined_prompts_count_for_duplicates_and_the_cap():
    prompts = plain("Mail a@example.com", "mail A@example.com", "two", "three", user="ann")
    taken = intake(prompts, Rules(max_per_user=2))
    assert (ids(taken.quarantined), ids(taken.kept)) == (["p0"], ["p2"])
    assert (found(taken, "duplicates"), list(found(taken, "per user"))) == ({"p1": "repeats 'p0'"}, ["p3"])


@needs_presidio
def test_one_found_harmless_enters_by_a_second_intake():
    first = intake(plain("Explain 10.0.0.1", "Name a tree.", user="ann"), Rules())
    second = intake(first.quarantined, NO_SCREEN, known=first.kept)
    assert ids(second.kept) == ["p0"]
    assert second.kept[0].split == first.kept[0].split
    assert second.report.lines()[-1] == "personal data: not screened (personal_data is off)"


@needs_presidio
def test_screening_opens_no_connection(monkeypatch, fresh_screen):
    import tldextract

    # As in a new process with nothing cached: presidio's own e-mail recognizer would fetch the list of domains.
    monkeypatch.setattr("tldextract.tldextract.TLD_EXTRACTOR", tldextract.TLDExtract(cache_dir=None))
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: asked.append(a) or [])
    monkeypatch.setattr(socket.socket, "connect", lambda *a: asked.append(a))
    assert intake(plain(*SECRETS), Rules()).kept == []
    assert asked == []


@needs_presidio
def test_what_cannot_be_screened_is_quarantined_and_not_logged(monkeypatch, caplog, fresh_screen):
    from presidio_analyzer import pattern_recognizer, predefined_recognizers

    iban = "DE89370400440532013000"

    def refuse(*args: Any) -> str:
        raise ValueError(f"cannot read {args}")

    with monkeypatch.context() as patch:  # presidio logs the text as an error and goes on
        patch.setattr(predefined_recognizers.IbanRecognizer, "_IbanRecognizer__generate_iban_check_digits", refuse)
        logged = intake(plain(f"Pay {iban}"), Rules())
    with monkeypatch.context() as patch:  # an exception with the text in its message
        patch.setattr(predefined_recognizers.PhoneRecognizer, "analyze", refuse)
        raised = intake(plain(f"Pay {iban}"), Rules())
    with monkeypatch.context() as patch:  # presidio skips a pattern that takes too long
        patch.setattr(pattern_recognizer, "REGEX_TIMEOUT_SECONDS", 1e-9)
        skipped = intake(plain("aaa." * 900), Rules())
    for taken in (logged, raised, skipped):
        assert found(taken, "personal data") == {"p0": "holds 1 NOT_SCREENED"}
        assert iban not in said(taken) + caplog.text
    assert intake(plain("aaa." * 900), Rules()).quarantined == []


@pytest.mark.parametrize(
    ("library", "rules", "remedy"),
    [
        ("presidio_analyzer", Rules(), "personal_data=False"),
        ("tldextract", Rules(), "personal_data=False"),
        ("py3langid", Rules(languages=("en",), personal_data=False), "or do not set it"),
    ],
)
def test_a_missing_library_is_an_error_with_the_remedy(monkeypatch, fresh_screen, library, rules, remedy):
    module._language_model.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=rf"needs {library}.*: pip install tutelage\[intake\].*{remedy}"):
        intake(plain("Hi"), rules)
    assert ids(intake(plain("Hi"), NO_SCREEN).kept) == ["p0"]


# 6. The split


def test_a_user_is_drawn_by_a_fixed_function_of_the_seed():
    prompts = [Prompt(id=f"{user}{i}", text=f"{user}{i}", user=user) for i in range(2) for user in "abcdefghijkl"]
    splits = {prompt.id: prompt.split for prompt in intake(prompts, NO_SCREEN).kept}
    assert [splits[f"{user}0"] for user in "abcdefghijkl"] == (
        "train train train train train train train valid train train train train".split()
    )
    assert all(splits[f"{user}0"] == splits[f"{user}1"] for user in "abcdefghijkl")
    other = intake(prompts, Rules(personal_data=False, seed=1)).kept
    assert any(prompt.split != splits[prompt.id] for prompt in other)


@pytest.mark.parametrize("field", ["user", "id"])
def test_shares_are_those_asked_for(field):
    prompts = [Prompt(id=f"{i}", text=f"Number {i}", user=f"u{i}" if field == "user" else None) for i in range(10_000)]
    kept = intake(prompts, Rules(shares=(0.6, 0.3, 0.1), personal_data=False)).report.kept
    # Three standard deviations of a binomial are 147, 137 and 90.
    assert kept["train"] == pytest.approx(6000, abs=147)
    assert kept["valid"] == pytest.approx(3000, abs=137)
    assert kept["test"] == pytest.approx(1000, abs=90)


def test_a_share_of_zero_draws_nobody():
    prompts = [Prompt(id=f"{i}", text=f"Number {i}") for i in range(1000)]
    assert intake(prompts, Rules(shares=(0, 1, 0), personal_data=False)).report.kept == {
        "train": 0,
        "valid": 1000,
        "test": 0,
    }


def test_a_split_that_came_with_a_prompt_is_its_users():
    rows = [("a", "ann", None), ("b", "ann", "test"), ("c", "ann", "valid"), ("d", None, "valid"), ("e", None, "test")]
    taken = intake([Prompt(id=i, text=i, user=u, split=s) for i, u, s in rows], NO_SCREEN)
    assert [prompt.split for prompt in taken.kept] == ["test", "test", "test", "valid", "test"]
    assert found(taken, "split") == {"c": "came as valid, but its user is in test"}
    assert taken.report.kept == {"train": 0, "valid": 1, "test": 4}


def test_a_known_user_keeps_the_split():
    known = [Prompt(id="k", text="k", user="ann", split="valid")]
    prompts = [Prompt(id="a", text="a", user="ann", split="train"), Prompt(id="b", text="b", user="ann")]
    taken = intake(prompts, NO_SCREEN, known)
    assert [prompt.split for prompt in taken.kept] == ["valid", "valid"]
    assert found(taken, "split") == {"a": "came as train, but its user is in valid"}


# All rules together


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"shares": (0.8, 0.1, 0.2)}, "sum to 1"),
        ({"shares": (1.2, -0.1, -0.1)}, "from 0"),
        ({"min_characters": 10, "max_characters": 9}, "max_characters=9 is below min_characters=10"),
        ({"min_characters": 0}, "min_characters"),
        ({"max_per_users": 3}, "max_per_users"),
    ],
)
def test_rules_that_cannot_be_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        Rules(**values)


@needs_presidio
@needs_langid
def test_the_report_says_for_each_rule_how_many_and_the_first():
    texts = " ", FRENCH, "Mail a@example.com", "One.", "one.", "Two.", "Three."
    prompts = [*plain(*texts, user="ann", split="test"), Prompt(id="x", text="X", user="ann", split="train")]
    taken = intake(prompts, Rules(languages=("en",), max_per_user=3))
    assert taken.report.lines() == [
        "prompts: 8 read, 2 kept (0 train, 0 valid, 2 test)",
        "length: 1 dropped (first: 'p0' has 0 characters, not 1 to 4000)",
        "language: 1 dropped (first: 'p1' is in fr, not in en)",
        "duplicates: 1 dropped (first: 'p4' repeats 'p3')",
        "per user: 2 dropped (first: 'p6' comes after 3 prompts of its user)",
        "personal data: 1 quarantined (first: 'p2' holds 1 EMAIL_ADDRESS)",
    ]
    stored = json.loads(json.dumps(taken.report.model_dump(mode="json")))
    assert type(taken.report).model_validate(stored) == taken.report
    assert stored["findings"]["per user"][1] == {
        "id": "x",
        "reason": "comes after 3 prompts of its user",
        "entities": {},
    }


def beginning(text: str) -> str:
    return " ".join(text.lower().split())[:6]


texts = st.text(alphabet="aB ", max_size=9).filter(bool) | st.sampled_from(["a@b.com", "b@b.com 1", "Ab 10.0.0.1"])
rows = st.lists(
    st.tuples(texts, st.sampled_from([None, "x", "y", "z"]), st.sampled_from([None, "train", "valid", "test"])),
    max_size=25,
)


@needs_presidio
@settings(deadline=None)
@given(rows, rows, st.integers(0, 3))
def test_what_holds_of_any_two_imports(first, second, seed):
    rules = Rules(prefix=6, max_per_user=3, min_characters=2, max_characters=10, seed=seed)
    known: list[Prompt] = []
    for name, batch in (("m", first), ("n", second)):
        prompts = [Prompt(id=f"{name}{i}", text=t, user=u, split=s) for i, (t, u, s) in enumerate(batch)]
        taken = intake(prompts, rules, known)
        dropped = [f.id for rule in ("length", "duplicates", "per user") for f in taken.report.findings[rule]]
        assert sorted(ids(taken.kept) + ids(taken.quarantined) + dropped) == sorted(ids(prompts))
        assert sorted(f.id for f in taken.report.findings["personal data"]) == sorted(ids(taken.quarantined))
        held = known + taken.kept + taken.quarantined
        assert all(n <= 3 for user, n in Counter(p.user for p in held).items() if user)
        assert len({beginning(str(p.text)) for p in held}) == len(held)
        known = known + taken.kept
        assert all(p.split for p in known)
        assert len({(p.user, p.split) for p in known if p.user}) == len({p.user for p in known if p.user})
        given_splits = {p.id: p.split for p in prompts if p.split}
        moved = {p.id for p in taken.kept + taken.quarantined if p.split != given_splits.get(p.id, p.split)}
        assert moved == set(found(taken, "split"))
    again = intake(known, rules, known)
    assert again.kept == again.quarantined == []
    assert again.report.counts["duplicates"] == len(known)
    assert intake(known, rules).kept == known


@needs_presidio
@needs_langid
@pytest.mark.parametrize(
    ("name", "read", "dropped"),
    [
        ("self_instruct/seed_tasks.jsonl", 175, {"length": 1, "personal data": 2}),  # two e-mails
        ("raschka/instruction-data.json", 1100, {"duplicates": 26}),  # 25 are wholly equal
    ],
)
def test_real_tasks(name, read, dropped):
    if not (SHARED / name).is_file():
        pytest.skip(f"{SHARED / name} is absent")
    if name.endswith(".jsonl"):
        rows = [json.loads(line) for line in (SHARED / name).read_text(encoding="utf-8").splitlines()]
        prompts = plain(*(f"{row['instruction']}\n\n{row['instances'][0]['input']}" for row in rows))
    else:
        prompts = read_prompts(SHARED / name).records
    taken = intake(prompts, Rules(languages=("en",)))
    print(*taken.report.lines(), sep="\n")
    assert taken.report.read == read
    assert {rule: n for rule, n in taken.report.counts.items() if n} == dropped
