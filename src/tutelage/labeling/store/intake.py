"""Prompt intake by the paper's rules (Ouyang et al. 2022, section 3.2 and appendix A): which prompts enter a workspace.

The paper dedupes by a long common prefix, takes at most 200 prompts a user, splits by user, and filters personal data
out of the train split. Where it differs: prompts with personal data are set apart for a person to judge, and in every
split, because labelers read them all; and languages may be asked for. Nothing that is reported, logged or raised here
holds a prompt's text: only ids, counts and the names of rules.

    taken = intake(read_prompts("customers.jsonl").records, Rules(languages=("en",)), known=workspace_prompts)
    print(*taken.report.lines(), sep="\n")

Prompts are judged one by one in the order they come, and compared with those taken before them only: a prompt that the
cap dropped does not make another user's equal prompt a duplicate. On one core 10,000 prompts take 4 seconds
at 80 characters each and 15 at 540, nearly all of it screening, and importing presidio 4 more.
"""

from __future__ import annotations

import logging
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tutelage.data.draws import fraction
from tutelage.data.records import Prompt, Record, Split, Text
from tutelage.settings.common import nearest

Rule = Literal["length", "language", "duplicates", "per user", "personal data", "split"]
OUTCOME: dict[Rule, str] = {"personal data": "quarantined", "split": "moved"}  # by the other rules, prompts are dropped
SPLITS: tuple[Split, ...] = get_args(Split)


class Rules(BaseModel):
    """What a prompt must be like to be taken.

    Raises:
        ValueError: if a value is out of its range, or the shares do not sum to 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    min_characters: int = Field(1, ge=1)
    """Shortest prompt, without outer spaces. The paper names no minimum; 1 drops empty prompts only."""
    max_characters: int = Field(4000, ge=1)
    """Longest prompt, all turns together. The paper drops prompts over 1k tokens, about 4,000 characters of English."""
    languages: tuple[str, ...] | None = Field(None, min_length=1)
    """ISO 639-1 codes of the languages to keep, such as en; not set, every language is kept."""
    prefix: int = Field(100, ge=1)
    """Prompts that share this many first characters are duplicates. The paper gives no number; 100 are some 20 words,
    which two people hardly write alike. (Of 1,100 short tasks, 25 are equal to another; 100 drop 26, 50 drop 107.)"""
    max_per_user: int = Field(200, ge=1)
    """Most prompts of one user (paper: 200); prompts without a user are not capped."""
    personal_data: bool = True
    """Screen for e-mail addresses, phone, card, IBAN, IP and social security numbers, and bitcoin addresses."""
    min_confidence: float = Field(0.4, gt=0, le=1)
    """What a find must score: numbers with a check digit and e-mail score 1, IP 0.6, social security 0.5, phone 0.4."""
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of users that go to train, valid and test."""
    seed: int = 0
    """Seed of the split. Keep it between imports, so that a user falls into the same split again."""

    @model_validator(mode="after")
    def _consistent(self) -> Rules:
        if self.max_characters < self.min_characters:
            raise ValueError(f"max_characters={self.max_characters} is below min_characters={self.min_characters}")
        if min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares={self.shares} must be three numbers from 0 that sum to 1")
        return self


class Finding(Record):
    """What a rule did to a prompt, and why: never the prompt's text. `entities` counts the types of personal data."""

    id: str
    reason: str
    entities: dict[str, int] = Field(default_factory=dict)


class Report(Record):
    """What an intake did; `model_dump(mode="json")` is plain data to store."""

    read: int
    kept: dict[Split, int]
    screened: bool
    findings: dict[Rule, tuple[Finding, ...]]

    @property
    def counts(self) -> dict[Rule, int]:
        """How many prompts each rule dropped, quarantined or moved."""
        return {rule: len(hits) for rule, hits in self.findings.items()}

    def lines(self) -> list[str]:
        """For people: the sum, then a line for each rule that did something, with its first case."""
        kept = ", ".join(f"{n} {split}" for split, n in self.kept.items())
        lines = [f"prompts: {self.read} read, {sum(self.kept.values())} kept ({kept})"]
        for rule, hits in self.findings.items():
            if hits:
                first = f"{hits[0].id!r} {hits[0].reason}"
                lines.append(f"{rule}: {len(hits)} {OUTCOME.get(rule, 'dropped')} (first: {first})")
        return lines if self.screened else [*lines, "personal data: not screened (personal_data is off)"]


@dataclass(frozen=True)
class Intake:
    """The prompts taken, each with its split; those set apart for a person to judge; and the report on all."""

    kept: list[Prompt] = field(repr=False)
    quarantined: list[Prompt] = field(repr=False)  # a repr ends up in logs
    report: Report


def intake(prompts: Sequence[Prompt], rules: Rules, known: Sequence[Prompt] = ()) -> Intake:
    """Apply the rules to new prompts; `known` are those that the workspace already holds, which are not judged.

    1. Length. 2. Language, as py3langid sees it; what it is unsure of (short texts, sums, code) is kept. 3. Duplicates:
    of prompts that begin alike, but for case and spacing, the first stays. A conversation begins with its last user
    turn and goes back from there, so a shared system message or preamble makes no duplicates unless what was
    asked is also the same. (A plain text with a template in front is compared from its first character, as in the
    paper.) 4. The cap per user. 5. Personal data, in any turn, by presidio's patterns and check digits: it finds no
    names or addresses, which take a language model. Bare ten-digit numbers, 1.2.3.4 and "512 33 1024" look like
    telephone, IP and social security numbers, so prompts are quarantined, never dropped; one found harmless enters by
    a second intake with personal_data=False. Quarantined prompts count for rules 3 and 4.
    6. Split: a user is in one split. It is that of the user's known prompts, or the first that a kept prompt came
    with, or else a hash of seed and user. Customers' files may disagree with this: such a prompt is moved to its
    user's split and reported rather than the import refused, so that no user is ever in two.

    Raises:
        ValueError: if one id stands for two texts, a language is unknown, or a library of the extra is missing.
    """
    language = _language_model(rules.languages) if rules.languages else None
    screen = _screen() if rules.personal_data else None
    texts: dict[str, Text] = {}
    for prompt in (*known, *prompts):
        if texts.setdefault(prompt.id, prompt.text) != prompt.text:
            raise ValueError(f"prompt id {prompt.id!r} stands for two different texts; give each an id of its own")
    first_with = {_beginning(prompt.text, rules.prefix): prompt.id for prompt in reversed(known)}
    per_user = Counter(prompt.user for prompt in known)
    findings: dict[Rule, list[Finding]] = {rule: [] for rule in get_args(Rule)}
    passed: list[Prompt] = []
    held: list[Prompt] = []
    for prompt in prompts:
        beginning = _beginning(prompt.text, rules.prefix)
        if broken := _broken_rule(prompt, rules, language, first_with.get(beginning), per_user[prompt.user]):
            rule, reason = broken
            findings[rule].append(Finding(id=prompt.id, reason=reason))
            continue
        first_with[beginning] = prompt.id
        per_user[prompt.user] += 1
        if screen and (entities := screen(_joined(prompt.text), rules.min_confidence)):
            reason = "holds " + ", ".join(f"{n} {entity}" for entity, n in entities.items())
            findings["personal data"].append(Finding(id=prompt.id, reason=reason, entities=entities))
            held.append(prompt)
        else:
            passed.append(prompt)

    split_of = {p.user: p.split for p in reversed((*known, *passed, *held)) if p.user is not None and p.split}
    kept = [_with_split(prompt, split_of, rules) for prompt in passed]
    quarantined = [_with_split(prompt, split_of, rules) for prompt in held]  # one released must not train by mistake
    for came, prompt in zip((*passed, *held), (*kept, *quarantined), strict=True):
        if came.split not in (None, prompt.split):
            reason = f"came as {came.split}, but its user is in {prompt.split}"
            findings["split"].append(Finding(id=prompt.id, reason=reason))
    splits = Counter(prompt.split for prompt in kept)
    in_splits = {split: splits[split] for split in SPLITS}
    by_rule = {rule: tuple(hits) for rule, hits in findings.items()}
    report = Report(read=len(prompts), kept=in_splits, screened=rules.personal_data, findings=by_rule)
    return Intake(kept, quarantined, report)


def _broken_rule(
    prompt: Prompt, rules: Rules, language: Callable[[str], str | None] | None, twin: str | None, of_user: int
) -> tuple[Rule, str] | None:
    """The first of rules 1 to 4 that a prompt breaks, and how: `twin` begins like it, `of_user` came before it."""
    length = len(_joined(prompt.text).strip())
    if not rules.min_characters <= length <= rules.max_characters:
        return "length", f"has {length} characters, not {rules.min_characters} to {rules.max_characters}"
    if rules.languages and language and (spoken := language(_turns(prompt.text)[0])) not in (None, *rules.languages):
        return "language", f"is in {spoken}, not in {' or '.join(rules.languages)}"
    if twin:
        whole = len(_beginning(prompt.text, rules.prefix)) < rules.prefix
        shared = "repeats" if whole else f"shares its first {rules.prefix} characters with"
        return "duplicates", f"{shared} {twin!r}"
    if prompt.user is not None and of_user >= rules.max_per_user:
        return "per user", f"comes after {rules.max_per_user} prompts of its user"
    return None


def _with_split(prompt: Prompt, split_of: Mapping[str, Split], rules: Rules) -> Prompt:
    """A prompt in its user's split; in its own if nobody is named as its user."""
    if prompt.user is None:
        split = prompt.split or _drawn_split(rules, "prompt", prompt.id)
    else:
        split = split_of.get(prompt.user) or _drawn_split(rules, "user", prompt.user)
    return prompt.model_copy(update={"split": split})


def _turns(text: Text) -> list[str]:
    """What is asked first: the last user turn, what follows it, then the turns before it, the nearest first."""
    if isinstance(text, str):
        return [text]
    asked = max((i for i, turn in enumerate(text) if turn.role == "user"), default=len(text) - 1)
    return [turn.content for turn in (*text[asked:], *reversed(text[:asked]))]


def _beginning(text: Text, characters: int) -> str:
    return " ".join(" ".join(_turns(text)).casefold().split())[:characters]


def _joined(text: Text) -> str:
    return text if isinstance(text, str) else "\n\n".join(turn.content for turn in text)


@cache
def _language_model(wanted: tuple[str, ...]) -> Callable[[str], str | None]:
    """A function of a text that tells its language, or None where that is not sure."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ValueError(f"languages needs {error.name}: pip install tutelage[intake], or do not set it") from None
    # On 2,393 English instructions and questions, wrong guesses had at most 0.61, and fewer than 30 letters.
    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=0.7)
    if unknown := [code for code in wanted if code not in model.labels]:
        raise ValueError(f"languages: unknown code {unknown[0]!r}; {nearest(unknown[0], model.labels)}")

    def language(text: str) -> str | None:
        code = model.classify(text)[0]
        return None if code in ("und", "zxx") else code  # zxx: no language at all

    return language


@cache
def _screen() -> Callable[[str, float], dict[str, int]]:
    """A function of a text and the least score that counts the types of personal data found, with no language model."""
    try:
        import tldextract
        from presidio_analyzer import predefined_recognizers as presidio
    except ImportError as error:
        raise ValueError(
            f"screening for personal data needs {error.name}: pip install tutelage[intake], or set personal_data=False"
        ) from None
    shipped = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)  # the default fetches the list of domains

    class EmailRecognizer(presidio.EmailRecognizer):
        def validate_result(self, pattern_text: str) -> bool:
            return bool(shipped(pattern_text).fqdn)

    recognizers: list[Any] = [
        EmailRecognizer(),
        presidio.PhoneRecognizer(leniency=2),  # digits grouped as its country does: at 1, "1 2 3 4 5 6 7 8 9 10" is one
        presidio.CreditCardRecognizer(),
        presidio.IbanRecognizer(),
        presidio.IpRecognizer(),
        presidio.UsSsnRecognizer(),
        presidio.CryptoRecognizer(),
    ]
    logging.getLogger("presidio-analyzer").addFilter(_no_warnings)

    def screen(text: str, min_confidence: float) -> dict[str, int]:
        try:
            hits = [hit for r in recognizers for hit in r.analyze(text, r.supported_entities, None)]
        except Exception:  # its message may quote the text
            return {"NOT_SCREENED": 1}
        return dict(Counter(hit.entity_type for hit in hits if hit.score >= min_confidence))

    return screen


def _no_warnings(record: logging.LogRecord) -> bool:
    """presidio's warnings may quote the text and mean that it gave up on a pattern: an error for `screen`, no log."""
    if record.levelno >= logging.WARNING:
        raise RuntimeError
    return True


def _drawn_split(rules: Rules, kind: str, name: str) -> Split:
    """A function of seed and name: the same on every machine."""
    position = fraction(f"{rules.seed}/{kind}/{name}")
    return SPLITS[bisect(list(accumulate(rules.shares)), position, hi=len(SPLITS) - 1)]
