"""Requests drawn from the application's own schema, in each role: no internal error, no hang, nothing of another role.

The schema is FastAPI's; what it cannot know, as pages read forms by themselves, is the fields of each form, added here.
TUTELAGE_FUZZ says how many requests each role makes (5000 for a whole run).
"""

from __future__ import annotations

import os
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from sqlalchemy import update
from starlette.testclient import TestClient

from tutelage.data.records import Completion, Prompt
from tutelage.labeling.store import accounts, assignment
from tutelage.labeling.store.answers import ANNOTATIONS, AREAS, FLAGS, KINDS, SKIP_REASONS, USE_CASES
from tutelage.labeling.store.database import Workspace
from tutelage.labeling.store.prompts import add_prompts
from tutelage.labeling.store.schema import people
from tutelage.labeling.store.tasks import Terms, add_task
from tutelage.labeling.web.app import create_app

from .conftest import PASSWORD, add
from .test_security import MATRIX

EXAMPLES = int(os.environ.get("TUTELAGE_FUZZ", "100"))
SECONDS = 30.0  # an answer that takes longer is a hang, also where the machine has other work
# What only some may read. Policies' names, hashes and the key are on no page at all.
LABELERS, REVIEWERS, OWNERS = ("labeler", "reviewer", "owner"), ("reviewer", "owner"), ("owner",)
SECRETS = {
    "MARKPOLICY": (), "$argon2": (), "MARKPROMPT": LABELERS, "MARKOTHER": REVIEWERS, "Tessa Marker": REVIEWERS,
    "MARKQUARANTINE": OWNERS, "labeler-": OWNERS,
}  # fmt: skip


# What leads further than to a refusal. Half of what is drawn is put in place of it, field by field.
KNOWN: dict[str, tuple[str, ...]] = {
    "name": ("Tessa Marker", "style.css", "rank.js"), "password": (PASSWORD,), "kind": tuple(KINDS),
    "plot": ("labelers", "times", "days"), "areas": tuple(AREAS), "role": ("owner", "reviewer", "labeler"),
    "arm": ("training", "heldout"), "status": ("screening", "working", "paused"), "decision": ("admit", "decline"),
    "prompt": ('"held"', '"p1"', "[" * 3000, '"\\ud800"'), "sure": ("yes",), "user": ("u1", "u2"),
    "text": ("# A guide",), "act": ("publish", "preview"), "base": ("1", "2"), "quality": tuple("1234567"),
    "completion": ("An answer.",), "annotations": tuple(ANNOTATIONS), "key": tuple(c * 20 for c in "abcdefghij"),
    "use_case": USE_CASES, "active_seconds": ("1", "1e9"), "reason": tuple(SKIP_REASONS), "note": ("Hm.",),
    "rank_1": ("1",), "rank_2": ("1", "2"), "quality_1": tuple("17"), "quality_2": tuple("17"), "flags_1": tuple(FLAGS),
}  # fmt: skip
ANSWER = (
    "completion", "note", "annotations", "key", "use_case", "active_seconds", "reason", "skip_note", "rank_1", "rank_2",
    "quality_1", "quality_2", "flags_1", "back",
)  # fmt: skip
FORMS: dict[str, tuple[str, ...]] = {
    "/sign-in": ("name", "password"), "/join/{token}": ("name", "password", "areas"), "/sign-out": (),
    "/next": ("kind",), **{f"/task/{{number}}/{act}": ANSWER for act in ("draft", "submit", "correct", "skip")},
    "/people/invite": ("role", "arm", "status"), "/people/invite/revoke": ("link",),
    "/people/{person}": ("role", "arm", "status"), "/people/{person}/screening": ("decision",),
    "/people/{person}/sign-out": (), "/people/{person}/password": (), "/prompts/read": ("prompt",),
    "/prompts/release": ("prompt",), "/prompts/erase": ("prompt", "sure"), "/prompts/erase-user": ("user", "sure"),
    "/instructions/{kind}": ("text", "act", "base"), "/review/{answer}": ("quality",),
}  # fmt: skip


def nearer(name: str, drawn: Any) -> Any:
    """What was drawn, or in half of all cases something that leads further."""
    lot = zlib.crc32(repr(drawn).encode("utf-8", "replace"))
    first = {"number": 18, "person": 1, "answer": 15}
    if lot % 2 and name in first:
        return first[name] + lot // 2 % 8
    return KNOWN[name][lot // 2 % len(KNOWN[name])] if lot % 2 and name in KNOWN else drawn


def described(app: Any) -> dict[str, Any]:
    """The application's schema, with its forms."""
    schema: dict[str, Any] = app.openapi()
    for path, acts in schema["paths"].items():
        if "post" in acts:
            fields = {
                name: {"type": "array", "items": {"type": "string"}} if name in ("annotations", "areas", "flags_1")
                else {"type": "string"} for name in FORMS[path]
            }  # fmt: skip
            form = {"schema": {"type": "object", "properties": fields, "required": list(fields)}}
            acts["post"]["requestBody"] = {"content": {"application/x-www-form-urlencoded": form}, "required": True}
    return schema


@dataclass
class Role:
    """Somebody of a role, who is back in it, and signed in, before each request."""

    name: str
    workspace: Workspace
    browser: TestClient
    person: int | None
    codes: Counter[int] = field(default_factory=Counter)

    def ready(self) -> None:
        self.browser.cookies.clear()
        if self.person is None:
            return
        with self.workspace.write() as connection:
            mine = update(people).where(people.c.id == self.person)
            connection.execute(mine.values(role=self.name, status="working"))
            token = accounts.start_session(connection, self.person)
        self.browser.cookies.set("tutelage_session", token)

    def send(self, case: Case) -> None:
        """One request, and what must hold of its answer."""
        self.ready()
        case.path_parameters = {name: nearer(name, value) for name, value in (case.path_parameters or {}).items()}
        if isinstance(case.body, dict):
            case.body = {name: nearer(name, value) for name, value in case.body.items()}
        sent = case.as_transport_kwargs(base_url="http://testserver")
        wanted = {k: sent[k] for k in ("method", "url", "params", "data", "headers") if sent.get(k) is not None}
        if isinstance(wanted.get("data"), bytes | str):
            wanted["content"] = wanted.pop("data")
        start = time.perf_counter()
        try:
            reply = self.browser.request(**wanted)
        except (UnicodeEncodeError, TypeError) as error:  # httpx cannot say it
            pytest.fail(f"{wanted}: {error}")
        assert time.perf_counter() - start < SECONDS, wanted
        assert reply.status_code < 500, (wanted, reply.text[:300])
        for secret, readers in SECRETS.items():
            assert self.name in readers or secret not in reply.text, (secret, wanted)
        assert self.workspace.key.hex() not in reply.text
        self.codes[reply.status_code] += 1


@pytest.fixture(params=["nobody", "labeler", "reviewer", "owner"])
def role(request: pytest.FixtureRequest, sqlite: Workspace) -> Iterator[Role]:
    """Each role in a workspace where Tessa Marker has worked, of every kind of task."""
    tessa, owner = add(sqlite, "Tessa Marker"), add(sqlite, "Olga", "owner")
    two = [Completion(text=f"MARKPROMPT answer {i}", policy=f"MARKPOLICY {i}") for i in (1, 2)]
    with sqlite.write() as connection:
        held = Prompt(id="held", text="MARKQUARANTINE", user="u9")
        add_prompts(connection, [held], {"held": {"EMAIL": 1}})
        for i in range(12):
            asked = Prompt(id=f"p{i}", text=f"MARKPROMPT {i}", user=f"u{i}")
            add_prompts(connection, [asked])
            for kind in KINDS:
                texts = two if kind in ("ranking", "comparison") else []
                add_task(connection, kind, asked, texts, Terms(capacity=9, rate=bool(i % 2)))
        for i in range(20):
            mine = assignment.next_task(connection, tessa)
            shown = assignment.show(connection, tessa, mine)
            body: dict[str, Any] = {"completion": "MARKOTHER", "use_case": "chat", "ranks": [1, 2]}
            only = {"demonstration": "completion", "labels": "use_case"}.get(shown.kind, "ranks")
            answer = {only: body[only]} | ({"ratings": [{"quality": 1}] * 2} if shown.rate else {})
            assignment.submit(connection, tessa, mine, answer, f"{i:020d}")
    person = {"nobody": None, "owner": owner}.get(request.param, 0)
    if person == 0:
        person = add(sqlite, "Somebody", request.param)
    if person is not None:
        with sqlite.write() as connection:  # something in hand of each kind, and something to correct
            for kind in KINDS:
                mine = assignment.next_task(connection, person, kind)
            ranked = {"ranks": [1, 1]}
            assignment.submit(connection, person, mine, ranked, "m" * 20)
    with TestClient(create_app(sqlite), follow_redirects=False, raise_server_exceptions=False) as browser:
        yield Role(request.param, sqlite, browser, person)


def test_requests_of_the_schema(role: Role) -> None:
    schema = schemathesis.openapi.from_dict(described(role.browser.app))
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == len(MATRIX)
    cases = [operation.as_strategy(generation_mode=GenerationMode.POSITIVE) for operation in operations]
    for operation in operations:
        if operation.method == "post" or operation.query or operation.path_parameters:
            cases.append(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.one_of(cases))
    def ask(case: Case) -> None:
        role.send(case)

    ask()
    print(f"{role.name}: {sum(role.codes.values())} requests, {dict(sorted(role.codes.items()))}")
    assert role.codes.total() >= EXAMPLES
