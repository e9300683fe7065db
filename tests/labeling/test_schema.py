"""Requests drawn from the application's own schema, in each role: no internal error, no hang, nothing of another role.

The schema is FastAPI's; what it cannot know, as pages read forms by themselves, is the fields of each form, added here.
TUTELAGE_FUZZ says how many requests each role makes (5000 for a whole run).
"""

from __future__ import annotations

import os
import time
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

from tutelage.labeling import accounts, assignment, queue
from tutelage.labeling.answers import ANNOTATIONS, AREAS, FLAGS, KINDS, SKIP_REASONS, USE_CASES
from tutelage.labeling.database import Workspace
from tutelage.labeling.schema import people
from tutelage.labeling.web.app import create_app
from tutelage.records import Completion, Prompt

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


def one_of(*known: str) -> dict[str, Any]:
    """A field that has sensible values, and gets others too."""
    return {"anyOf": [{"enum": list(known)}, {"type": "string"}]}


ANY, YES, RANK = {"type": "string"}, one_of("yes"), one_of(*"1234567")
ANSWER = {
    "completion": ANY, "note": ANY, "annotations": {"type": "array", "items": one_of(*ANNOTATIONS)},
    "key": one_of(*(letter * 20 for letter in "abcdefgh")), "use_case": one_of(*USE_CASES),
    "active_seconds": one_of("1", "1e9"), "reason": one_of(*SKIP_REASONS), "skip_note": ANY,
    **{f"rank_{i}": RANK for i in (1, 2, 3)}, **{f"quality_{i}": RANK for i in (1, 2, 3)},
    "flags_1": {"type": "array", "items": one_of(*FLAGS)}, "back": YES,
}  # fmt: skip
PERSON = {
    "role": one_of("owner", "reviewer", "labeler"), "arm": one_of("training", "heldout"),
    "status": one_of("screening", "working", "paused"),
}  # fmt: skip
HELD = {"prompt": one_of('"held"', '"p1"', "[" * 3000, '"\\ud800"'), "sure": YES}
FORMS: dict[str, dict[str, Any]] = {
    "/sign-in": {"name": one_of("Tessa Marker"), "password": one_of(PASSWORD)},
    "/join/{token}": {"name": ANY, "password": ANY, "areas": {"type": "array", "items": one_of(*AREAS)}},
    "/sign-out": {},
    "/next": {"kind": one_of(*KINDS)},
    **{f"/task/{{number}}/{act}": ANSWER for act in ("draft", "submit", "correct", "skip")},
    "/people/invite": PERSON,
    "/people/invite/revoke": {"link": ANY},
    "/people/{person}": PERSON,
    "/people/{person}/screening": {"decision": one_of("admit", "decline")},
    "/people/{person}/sign-out": {},
    "/people/{person}/password": {},
    "/prompts/read": HELD, "/prompts/release": HELD, "/prompts/erase": HELD,
    "/prompts/erase-user": {"user": one_of("u1"), "sure": YES},
    "/instructions/{kind}": {"text": ANY, "act": one_of("publish", "preview"), "base": RANK},
    "/review/{answer}": {"quality": RANK},
}  # fmt: skip
NEAR = {  # path parameters: values that lead somewhere, among all that may come
    "kind": one_of(*KINDS), "plot": one_of("labelers", "times", "days"), "name": one_of("style.css", "rank.js"),
}  # fmt: skip


def described(app: Any) -> dict[str, Any]:
    """The application's schema, with its forms."""
    schema: dict[str, Any] = app.openapi()
    for path, acts in schema["paths"].items():
        for method, act in acts.items():
            for parameter in act.get("parameters", []):
                if parameter["in"] == "path" and parameter["schema"]["type"] == "integer":
                    few = {"type": "integer", "minimum": 1, "maximum": 30}
                    parameter["schema"] = {"anyOf": [few, few, parameter["schema"]]}
                elif parameter["in"] == "path" and parameter["name"] in NEAR:
                    parameter["schema"] = NEAR[parameter["name"]]
            if method == "post":
                form = {"schema": {"type": "object", "properties": FORMS[path]}}
                act["requestBody"] = {"content": {"application/x-www-form-urlencoded": form}}
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
        queue.add_prompts(connection, [held], {"held": {"EMAIL": 1}})
        for i in range(12):
            asked = Prompt(id=f"p{i}", text=f"MARKPROMPT {i}", user=f"u{i}")
            queue.add_prompts(connection, [asked])
            for kind in KINDS:
                texts = two if kind in ("ranking", "comparison") else []
                queue.add_task(connection, kind, asked, texts, capacity=9, rate=bool(i % 2))
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
