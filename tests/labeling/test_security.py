"""What an attacker would try on the real application: hostile texts, foreign sites, others' pages, stolen tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from sqlalchemy import insert, select, update
from starlette.testclient import TestClient

from tutelage.data.records import Completion, Prompt
from tutelage.labeling.store import accounts, assignment
from tutelage.labeling.store.accounts import FAILURES
from tutelage.labeling.store.answers import KINDS
from tutelage.labeling.store.database import Workspace
from tutelage.labeling.store.instructions import add_instruction
from tutelage.labeling.store.prompts import add_prompts
from tutelage.labeling.store.schema import answers, events, metadata, people, sessions
from tutelage.labeling.store.tasks import Terms, add_task
from tutelage.labeling.web.app import create_app
from tutelage.labeling.web.render import STATIC
from tutelage.labeling.web.security import BODY_BYTES, COOKIE, SAFE

from .conftest import PASSWORD, Server, add, session_of

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
SECRET_POLICY = "policy-sft-2048-steps"
HOSTILE = {
    "script": "<script>window.pwned=1;alert(1)</script>",
    "handler": '"><img src=x onerror="window.pwned=1;alert(1)"><svg onload=window.pwned=1>',
    "attribute": "' autofocus onfocus='window.pwned=1' x='",
    "textarea": "</textarea></title></style></bdi><script>window.pwned=1</script>",
    "link": "[click](javascript:window.pwned=1) <a href='javascript:window.pwned=1'>x</a>",
    "data": "[click](data:text/html,<script>window.pwned=1</script>) <javascript:window.pwned=1>",
    "picture": "![x](http://evil.invalid/p.png) <img src='//evil.invalid/q.png'> ![y](/sign-out)",
    "style": "<style>@import 'http://evil.invalid/s'; *{display:none}</style><link rel=stylesheet href=//evil.invalid>",
    "frame": "<iframe src='http://evil.invalid'></iframe><meta http-equiv=refresh content='0;url=http://evil.invalid'>",
    "form": "<form action='http://evil.invalid'><button>Go</button></form><base href='http://evil.invalid/'>",
    "override": "\u202ereversed\u202c \u2066isolated \u202d",
    "template": "{{7*7}} {% for x in [].__class__ %}x{% endfor %} ${7*7} #{7*7}",
    "sql": "'; DROP TABLE people; -- \" OR 1=1",
    "path": "../../../../etc/passwd",
    "formula": '=HYPERLINK("http://evil.invalid","x")',
    "null": "a\x00b\x07\x1b[31m",
    "surrogate": "half \ud83d of a pair, \udc00 and the other",
    "emoji": "👩‍👩‍👧‍👦 مرحبا 名前 Z̸̖͑a̷l̶g̸o",
}
LONG = "x" * 1_000_000  # one line, no space
NAMES = {key: text for key, text in HOSTILE.items() if text.isprintable() and len(text) <= 80}


def routes(routes_: Iterable[Any]) -> Iterator[Any]:
    """All routes, also those of included routers."""
    for route in routes_:
        if hasattr(route, "path"):
            yield route
        else:
            yield from routes(route.original_router.routes)


# Every route, and the status that each role gets: without a session, as a labeler, a reviewer, the owner. Parameters
# are put in as below; POSTs carry an empty form, so 400 and 404 mean that the role was let in.
ROLES = ("nobody", "labeler", "reviewer", "owner")
OPEN, ALL = (200, 200, 200, 200), (303, 200, 200, 200)
OWNER, OWNER_POST, OWNER_WRONG = (303, 403, 403, 200), (303, 403, 403, 303), (303, 403, 403, 400)
OWNER_MISSING, MISSING = (303, 403, 403, 404), (303, 404, 404, 404)
MATRIX = {
    "GET /sign-in": OPEN,
    "POST /sign-in": (403, 403, 403, 403),
    "GET /join/{token}": (404, 404, 404, 404),
    "POST /join/{token}": (404, 404, 404, 404),
    "POST /sign-out": (303, 303, 303, 303),
    "GET /static/{name}": OPEN,
    "GET /": ALL,
    "POST /next": (303, 303, 303, 303),
    "GET /task/{number}": MISSING,
    "POST /task/{number}/draft": MISSING,
    "POST /task/{number}/submit": MISSING,
    "POST /task/{number}/correct": MISSING,
    "POST /task/{number}/skip": MISSING,
    "GET /mine": ALL,
    "GET /guide/{kind}": ALL,
    "GET /people": OWNER,
    "POST /people/invite": OWNER_WRONG,
    "POST /people/invite/revoke": OWNER_MISSING,
    "GET /people/{person}": OWNER,
    "POST /people/{person}": OWNER_POST,
    "POST /people/{person}/screening": OWNER_WRONG,
    "POST /people/{person}/sign-out": OWNER_POST,
    "POST /people/{person}/password": OWNER,
    "GET /review": (303, 403, 200, 200),
    "POST /review/{answer}": (303, 403, 400, 400),
    "GET /prompts": OWNER,
    "POST /prompts/read": OWNER_MISSING,
    "POST /prompts/release": OWNER_MISSING,
    "POST /prompts/erase": OWNER_WRONG,
    "POST /prompts/erase-user": OWNER_WRONG,
    "GET /instructions": OWNER,
    "GET /instructions/{kind}": OWNER,
    "POST /instructions/{kind}": OWNER_WRONG,
    "GET /agreement": OWNER,
    "GET /agreement/{plot}.svg": OWNER_MISSING,
    "GET /audit": OWNER,
}


@pytest.fixture
def ids(sqlite: Workspace) -> dict[str, int]:
    return {role: add(sqlite, f"The {role}", role) for role in ("owner", "reviewer", "labeler")}


@pytest.fixture
def client(sqlite: Workspace, ids: dict[str, int]) -> Callable[[str], TestClient]:
    """A maker of clients: of the owner, the reviewer, the labeler, or nobody."""
    app = create_app(sqlite)

    def make(role: str) -> TestClient:
        cookies = {COOKIE: session_of(sqlite, ids[role])} if role in ids else {}
        return TestClient(app, follow_redirects=False, cookies=cookies, raise_server_exceptions=False)

    return make


def listed(client: TestClient) -> list[tuple[str, str]]:
    """(method, path) of every route of the application."""
    found = [
        (method, re.sub(r":\w+}", "}", route.path)) for route in routes(client.app.routes) for method in route.methods
    ]
    assert len(found) > 30
    return found


def filled_in(path: str, person: int = 9) -> str:
    values = {"person": person, "kind": "ranking", "name": "style.css", "token": "t", "plot": "days"}
    return re.sub(r"{(\w+)}", lambda match: str(values.get(match[1], 9)), path)


def written(workspace: Workspace) -> list[Any]:
    """All that is stored but sessions, which the tests open."""
    with workspace.read() as connection:
        return [
            connection.execute(select(t)).all() for t in metadata.sorted_tables if t.name not in ("sessions", "events")
        ]


# Roles


@pytest.mark.parametrize("role", ROLES)
def test_role_by_route(sqlite: Workspace, client: Callable[[str], TestClient], ids: dict[str, int], role: str) -> None:
    given, expected = {}, {}
    for method, path in listed(client("nobody")):
        route = f"{method} {path}"
        assert route in MATRIX, f"{route} is new: say in MATRIX who may use it"
        before = written(sqlite)
        answer = client(role).request(method, filled_in(path, ids["labeler"]))
        given[route], expected[route] = answer.status_code, MATRIX[route][ROLES.index(role)]
        if answer.status_code == 403 or (role == "nobody" and answer.status_code == 303):
            assert written(sqlite) == before, route
        if role == "nobody" and answer.status_code == 303:
            assert answer.headers["location"] == "/sign-in", route
    assert given == expected
    assert given.keys() == MATRIX.keys()


def test_a_role_that_is_taken_away_is_gone_at_once(
    sqlite: Workspace, client: Callable[[str], TestClient], ids: dict[str, int]
) -> None:
    add(sqlite, "Another owner", "owner")
    owner = client("owner")
    assert owner.get("/people").status_code == 200
    with sqlite.write() as connection:
        accounts.change_person(connection, ids["owner"], ids["owner"], role="labeler")
    assert owner.get("/people").status_code == 403


def test_a_labeler_sees_their_own_tasks_alone(
    sqlite: Workspace, client: Callable[[str], TestClient], ids: dict[str, int]
) -> None:
    prompt = Prompt(id="p", text="Whose is this?")
    with sqlite.write() as connection:
        add_prompts(connection, [prompt])
        add_task(connection, "labels", prompt)
        theirs = assignment.next_task(connection, ids["reviewer"])
    for act in ("", "/draft", "/submit", "/correct", "/skip"):
        method = "POST" if act else "GET"
        fields = {"use_case": "chat", "reason": "other", "key": "k" * 20}
        answer = client("labeler").request(method, f"/task/{theirs}{act}", data=fields if act else None)
        assert answer.status_code == 404
    assert client("reviewer").get(f"/task/{theirs}").status_code == 200


# Requests from elsewhere


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"sec-fetch-site": "nonsense"},
        {"origin": "https://evil.invalid"}, {"origin": "null"}, {"origin": "http://testserver.evil.invalid"},
        {"origin": "http://testserver:81"}, {"sec-fetch-site": "cross-site", "origin": "http://testserver"},
    ],
)  # fmt: skip
def test_other_sites_change_nothing(
    sqlite: Workspace, client: Callable[[str], TestClient], ids: dict[str, int], headers: dict[str, str]
) -> None:
    owner = client("owner")
    unsafe = [(m, p) for m, p in listed(owner) if m not in SAFE]
    assert len(unsafe) > 12
    before = written(sqlite)
    for method, path in unsafe:
        answer = owner.request(method, filled_in(path, ids["labeler"]), headers=headers)
        assert (answer.status_code, answer.text[:8]) == (403, "Refused:"), path
    assert written(sqlite) == before


@pytest.mark.parametrize(
    "headers", [{"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {"origin": "http://testserver"}, {}]
)
def test_our_own_pages_may(client: Callable[[str], TestClient], ids: dict[str, int], headers: dict[str, str]) -> None:
    for method, path in listed(client("owner")):
        if method not in SAFE:
            answer = client("owner").request(method, filled_in(path, ids["labeler"]), headers=headers)
            assert not answer.text.startswith("Refused"), path


def test_every_change_is_a_post(client: Callable[[str], TestClient]) -> None:
    assert {method for method, _ in listed(client("nobody"))} == {"GET", "POST"}


def test_reading_changes_nothing(sqlite: Workspace, client: Callable[[str], TestClient], ids: dict[str, int]) -> None:
    owner = client("owner")
    with sqlite.read() as connection:
        noted = connection.execute(select(events)).all()
    before = written(sqlite)
    for method, path in listed(owner):
        if method == "GET":
            owner.get(filled_in(path, ids["labeler"]))
    assert written(sqlite) == before
    with sqlite.read() as connection:
        assert connection.execute(select(events)).all() == noted


# Headers


def test_headers_on_every_response(
    client: Callable[[str], TestClient], ids: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = client("nobody")
    every_route = listed(nobody)
    every = [client("owner").request(method, filled_in(path, ids["labeler"])) for method, path in every_route]
    owner = client("owner")
    every += [nobody.request(method, filled_in(path)) for method, path in every_route]
    every += [owner.get(path) for path in ("/nothing", "/static/nothing", "/people/x", "/agreement/x.svg")]
    every += [owner.delete("/people"), owner.post("/next", headers={"origin": "http://evil.invalid"})]
    every += [owner.post("/sign-in", content=b"x" * (BODY_BYTES + 1)), owner.request("OPTIONS", "/")]

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a mistake of ours, with a secret in it")

    monkeypatch.setattr(accounts, "invite", broken)
    monkeypatch.setattr("tutelage.labeling.web.manage.accounts.invite", broken)
    every.append(owner.post(f"/people/{ids['labeler']}/password"))
    assert {200, 303, 400, 403, 404, 405, 413, 500} <= {answer.status_code for answer in every}
    for answer in every:
        headers, where = answer.headers, f"{answer.request.method} {answer.request.url} {answer.status_code}"
        assert headers.get_list("content-security-policy") == [POLICY], where
        assert headers["x-content-type-options"] == "nosniff", where
        assert headers["referrer-policy"] == "same-origin", where
        assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin", where
        assert "geolocation=()" in headers["permissions-policy"], where
        kept = "public, max-age=31536000, immutable" if answer.request.url.path == "/static/style.css" else "no-store"
        assert headers["cache-control"] == kept, where
        assert "server" not in headers, where
        assert "a mistake of ours" not in answer.text, where


def test_a_fault_of_ours_is_no_mistake_of_theirs(
    client: Callable[[str], TestClient], ids: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ValueError is answered with its words only if the rooms meant it for who asked."""

    def broken(*_: object, **__: object) -> None:
        raise ValueError("some secret of ours")

    monkeypatch.setattr("tutelage.labeling.web.manage.accounts.invite", broken)
    answer = client("owner").post(f"/people/{ids['labeler']}/password")
    assert (answer.status_code, "secret" in answer.text) == (500, False)
    told = client("owner").post(f"/people/{ids['owner']}", data={"role": "labeler"})
    assert (told.status_code, "only owner" in told.text) == (400, True)


def test_pages_have_nothing_inline(client: Callable[[str], TestClient], ids: dict[str, int]) -> None:
    owner = client("owner")
    for method, path in listed(owner):
        if method == "GET":
            html = owner.get(filled_in(path, ids["labeler"])).text
            assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\bsrc=)", html), path


# Sessions and passwords


def sign_in(browser: TestClient, name: str, password: str = PASSWORD) -> Any:
    return browser.post("/sign-in", data={"name": name, "password": password})


def test_sessions(sqlite: Workspace, client: Callable[[str], TestClient], ids: dict[str, int]) -> None:
    """Random, out of scripts' and other sites' reach, nowhere in the tables, and gone after signing out."""
    tokens = []
    for _ in range(3):
        browser = client("nobody")
        answer = sign_in(browser, "The labeler")
        cookie = answer.headers["set-cookie"]
        attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert {"httponly", "samesite=lax", "path=/"} <= attributes
        assert "secure" not in attributes
        tokens.append(browser.cookies[COOKIE])
    assert len(set(tokens)) == 3
    assert all(re.fullmatch(r"[\w-]{22,}", token) for token in tokens)  # 6 bits a character
    with sqlite.read() as connection:
        stored = str([connection.execute(select(table)).all() for table in metadata.sorted_tables])
        assert len(connection.execute(select(sessions)).all()) == 3
    assert not [token for token in tokens if token in stored]
    assert browser.get("/mine").status_code == 200
    browser.post("/sign-out")
    late = client("nobody")
    late.cookies.set(COOKIE, tokens[-1])
    assert late.get("/mine").status_code == 303
    late.cookies.set(COOKIE, tokens[0])
    assert late.get("/mine").status_code == 200
    with sqlite.write() as connection:
        accounts.end_sessions(connection, ids["labeler"])
    assert late.get("/mine").status_code == 303


def test_cookie_is_secure_on_https(sqlite: Workspace, ids: dict[str, int]) -> None:
    browser = TestClient(create_app(sqlite), base_url="https://labels.example", follow_redirects=False)
    assert "secure" in sign_in(browser, "The labeler").headers["set-cookie"].lower()
    assert browser.get("/mine").status_code == 200


@pytest.mark.parametrize("token", ["", "x", "é", "a" * 10_000, "' OR 1=1 --", "%00"])
def test_invented_sessions(client: Callable[[str], TestClient], token: str) -> None:
    answer = client("nobody").get("/mine", headers={"cookie": f"{COOKIE}={token}".encode()})
    assert answer.status_code == 303


def test_a_new_password_ends_sessions(
    sqlite: Workspace, client: Callable[[str], TestClient], ids: dict[str, int]
) -> None:
    thief = client("labeler")
    with sqlite.write() as connection:
        token = accounts.invite(connection, person=ids["labeler"])
    client("nobody").post(f"/join/{token}", data={"password": "a new password"})
    assert thief.get("/mine").status_code == 303


def test_signing_in_does_not_tell_who_exists(client: Callable[[str], TestClient], ids: dict[str, int]) -> None:
    wrong, unknown = (sign_in(client("nobody"), name, "wrong horse") for name in ("The labeler", "No such name"))
    assert (wrong.status_code, wrong.content) == (unknown.status_code, unknown.content)
    assert wrong.headers == unknown.headers
    for name in ("The labeler", "No such name"):
        for _ in range(FAILURES - 1):
            sign_in(client("nobody"), name, "wrong horse")
    wrong, unknown = (sign_in(client("nobody"), name, "wrong horse") for name in ("The labeler", "No such name"))
    assert wrong.status_code == 429
    assert (wrong.status_code, wrong.content) == (unknown.status_code, unknown.content)


def test_guessing_is_slowed_down(workspace: Workspace) -> None:
    """By name and address, then by address for any name; the right password does not help, but elsewhere."""
    for name in ("Tess", "Tom"):
        add(workspace, name)
    app = create_app(workspace)
    here, there = (TestClient(app, follow_redirects=False, client=(host, 1)) for host in ("10.0.0.1", "10.0.0.2"))
    assert [sign_in(here, "Tess", "wrong horse").status_code for _ in range(FAILURES + 1)] == [403] * FAILURES + [429]
    assert sign_in(here, "TESS ").status_code == 429
    assert sign_in(there, "Tess").status_code == 303
    assert sign_in(here, "Tom").status_code == 303
    tries = [sign_in(here, f"guess {i}", "wrong horse").status_code for i in range(4 * FAILURES + 1)]
    assert tries == [403] * 4 * FAILURES + [429]
    assert sign_in(here, "Tom").status_code == 429
    assert sign_in(there, "Tom").status_code == 303


def test_guesses_at_once_are_counted_one_by_one(workspace: Workspace) -> None:
    """Or all would be checked before the first failure is noted."""
    add(workspace, "Tess")
    app = create_app(workspace)

    def guess(number: int) -> int:
        browser = TestClient(app, follow_redirects=False, client=("10.0.0.1", number))
        return sign_in(browser, "Tess", f"wrong horse {number}").status_code

    with ThreadPoolExecutor(12) as threads:
        tries = list(threads.map(guess, range(12)))
    assert sorted(tries) == [403] * FAILURES + [429] * (12 - FAILURES)


def test_people_who_sign_in_at_once_all_get_a_session(workspace: Workspace) -> None:
    names = [f"Labeler {i}" for i in range(6)]
    for name in names:
        add(workspace, name)
    app = create_app(workspace)

    def enter(name: str) -> tuple[int, bool]:
        browser = TestClient(app, follow_redirects=False)
        return sign_in(browser, name).status_code, name in browser.get("/").text

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(enter, names)) == [(303, True)] * 6


@pytest.mark.parametrize("field", ["name", "password"])
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_names_and_passwords(workspace: Workspace, field: str, text: str) -> None:
    browser = TestClient(create_app(workspace), follow_redirects=False)
    sent = {"name": "Tess", "password": PASSWORD} | {field: text}
    body = urlencode(sent, errors="surrogatepass")
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert browser.post("/sign-in", content=body, headers=form).status_code == 403
    with workspace.write() as connection:
        token = accounts.invite(connection)
    joined = browser.post(f"/join/{token}", content=body, headers=form)
    assert joined.status_code in (303, 400)
    with workspace.read() as connection:
        names = list(connection.execute(select(people.c.name)).scalars())
    plain = sent["name"].encode("utf-8", "surrogatepass").decode("utf-8", "replace")  # what urlencoded text can hold
    assert names in ([], [" ".join(plain.split())])
    assert browser.get("/join/" + "%00").status_code == 404


# What is sent


@pytest.mark.parametrize("chunked", [False, True])
def test_long_bodies_are_refused(client: Callable[[str], TestClient], chunked: bool) -> None:
    def chunks(total: int) -> Iterator[bytes]:
        yield b"name="
        for _ in range(total // 50_000):
            yield b"x" * 50_000

    form = {"content-type": "application/x-www-form-urlencoded"}

    def send(total: int) -> int:
        body = chunks(total) if chunked else b"".join(chunks(total))
        return client("nobody").post("/sign-in", content=body, headers=form).status_code

    assert send(BODY_BYTES + 50_000) == 413
    assert send(500_000) == 403  # read, and no such name


@pytest.mark.parametrize("length", ["-1", "1e3", "99999999999999999999", "9" * 5000, "abc", b"\xb2"])
def test_lengths_that_make_no_sense(client: Callable[[str], TestClient], length: str | bytes) -> None:
    answer = client("nobody").post("/sign-in", content=b"name=x", headers={"content-length": length})
    assert answer.status_code == 413


@pytest.mark.parametrize("multipart", [False, True])
def test_too_many_fields_are_refused(client: Callable[[str], TestClient], multipart: bool) -> None:
    def send(n: int) -> int:
        fields = {f"f{i}": "x" for i in range(n)}
        # httpx sends multipart only where there is a "file"; one without a filename is a field.
        sent = {"files": {k: (None, v) for k, v in fields.items()}} if multipart else {"data": fields}
        return client("nobody").post("/sign-in", **sent).status_code  # type: ignore[arg-type]

    assert send(501) == 400
    assert send(400) == 403


def test_uploads_are_refused(client: Callable[[str], TestClient]) -> None:
    answer = client("nobody").post("/sign-in", files={"name": ("name.txt", b"x")})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "kind", ["application/json", "text/plain", "multipart/form-data", "multipart/form-data; boundary=", ""]
)
def test_bodies_that_are_no_forms(client: Callable[[str], TestClient], kind: str) -> None:
    answer = client("nobody").post("/sign-in", content=b'{"name": "The owner"}\x00\xff', headers={"content-type": kind})
    assert answer.status_code in (400, 403)


ODD = ["0", "-1", str(10**30), "9" * 5000, "1.5", "x", "%00", "%ff", "..%2f..%2fetc%2fpasswd", "%2e%2e", "'", "{{7*7}}"]


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_odd_addresses_are_missing_pages(client: Callable[[str], TestClient], value: str) -> None:
    owner = client("owner")
    for method, path in listed(owner):
        if "{" in path:
            answer = owner.request(
                method, re.sub(r"{\w+}", value, path), data={"sure": "yes"} if method == "POST" else None
            )
            assert answer.status_code in (400, 404, 405), f"{method} {path}"
            assert answer.headers["content-type"].startswith("text/html"), f"{method} {path}"
            assert "49" not in answer.text


@pytest.mark.parametrize(
    "name",
    [
        "../security.py", "..%2fsecurity.py", "%2e%2e/app.py", "..%5capp.py", "%2fetc%2fpasswd", "style.css%00",
        "style.css/", "", "%252e%252e%252fapp.py", "STYLE.CSS", "base.html.j2",
    ],
)  # fmt: skip
def test_static_files_are_those_listed(sqlite: Workspace, serve: Callable[[Workspace], Server], name: str) -> None:
    """Over a socket, as clients tidy paths up."""
    import socket

    server = serve(sqlite)
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(f"GET /static/{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    # A slash too many is sent to the address without it; that file is public.
    assert re.match(rb"HTTP/1.1 (404|307)", answer)
    assert b"import" not in answer
    assert set(STATIC) >= {"style.css", "manage.css"}


# Hostile texts in a real browser


def hostile_workspace(workspace: Workspace) -> dict[str, int]:
    """A corpus of hostile strings wherever somebody else's text is shown; returns ids of labeler, reviewer, owner."""
    texts = [*(text for key, text in HOSTILE.items() if key != "surrogate"), LONG]
    everything = "\n\n".join(HOSTILE.values())
    whole = everything.encode("utf-8", "replace").decode()  # records are validated: they hold no half pairs
    storable = whole.replace("\x00", "")
    for i, name in enumerate(NAMES.values()):
        add(workspace, name, arm=("training", "heldout")[i % 2])
    people_ = {role: add(workspace, f"The {role}", role) for role in ("labeler", "reviewer", "owner")}
    tess = people_["labeler"]
    keys = iter(range(10_000))
    body: dict[str, dict[str, Any]] = {
        "demonstration": {"completion": whole, "note": HOSTILE["script"]},
        "ranking": {"ranks": [], "note": HOSTILE["handler"]},
        "labels": {"use_case": "chat", "note": HOSTILE["picture"]},
        "comparison": {"ranks": [1, 2], "note": HOSTILE["override"]},
    }
    with workspace.write() as connection:
        for kind in KINDS:
            add_instruction(connection, kind, storable, people_["owner"])
        prompt = Prompt(
            id=f"<b>{HOSTILE['path']}{HOSTILE['script']}", text=whole, user=HOSTILE["formula"], use_case="<i>chat</i>",
            split="train",
        )  # fmt: skip
        asked = [
            prompt,
            Prompt(id="long", text=LONG),
            Prompt(id=HOSTILE["sql"], text=({"role": HOSTILE["handler"], "content": whole},)),
        ]
        held = Prompt(id=HOSTILE["handler"], text=whole)
        add_prompts(connection, [*asked, held], {held.id: {HOSTILE["script"]: 1}})
        completions = [Completion(text=text, policy=SECRET_POLICY) for text in texts[:4]]
        many = [Completion(text=text, policy=SECRET_POLICY) for text in texts]
        for purpose in ("work", "gold"):
            for p in asked:
                reference = {"ranks": [1, 2, 3, 4]} if purpose == "gold" else None
                terms = Terms(capacity=99, rate=False, purpose=purpose, reference=reference)
                add_task(connection, "ranking", p, completions, terms)
        for p in asked:
            add_task(connection, "demonstration", p, terms=Terms(capacity=99))
            add_task(connection, "labels", p, terms=Terms(capacity=99))
            add_task(connection, "comparison", p, many[:2], Terms(capacity=99))
        # Everybody works: answers with hostile notes, and skips with them.
        everybody = [row.id for row in connection.execute(select(people).where(people.c.role == "labeler"))]
        for who in everybody:
            while (mine := assignment.next_task(connection, who)) is not None:
                shown = assignment.show(connection, who, mine)
                if shown.kind == "labels" and who != tess:
                    assignment.skip(connection, who, mine, "other", everything)
                    continue
                answer = body[shown.kind] | ({"ranks": [1, 2, 3, 4]} if shown.kind == "ranking" else {})
                assignment.submit(connection, who, mine, answer, f"key-{next(keys)}")
        # What waits for the labeler: one more of each kind, with a hostile draft.
        for kind in KINDS:
            new = {"ranking": many, "comparison": many[2:4]}.get(kind, [])
            add_task(connection, kind, prompt, new, Terms(capacity=99))
        connection.execute(update(answers).values(active_seconds=0.01))
        connection.execute(
            insert(events).values(
                at=1.0, kind="<img src=x onerror=window.pwned=1>", subject=storable, detail={"x": everything}
            )
        )
    return people_


class Watched:
    """A browser's context that remembers all that should not happen."""

    def __init__(self, browser: Any, server: Server, token: str) -> None:
        self.context = browser.new_context()
        self.context.add_cookies([{"name": COOKIE, "value": token, "url": server.url}])
        self.bad: list[str] = []
        self.server = server
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("dialog", lambda dialog: (self.bad.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("console", lambda message: self._console(message.text))
        self.page.on("pageerror", lambda error: self.bad.append(f"error {error}"))
        self.context.on("request", lambda request: self._request(request.url))
        self.context.on("page", lambda page: self.bad.append(f"window {page.url}") if page != self.page else None)
        self.sent: list[str] = []

    def _console(self, text: str) -> None:
        if "Content Security Policy" in text or "violates" in text:
            self.bad.append(f"console {text}")

    def _request(self, url: str) -> None:
        self.sent.append(url)
        if not url.startswith(self.server.url + "/"):
            self.bad.append(f"request {url}")

    def visit(self, path: str) -> str:
        answer = self.page.goto(self.server.url + path, wait_until="load")
        assert answer.status == 200, f"{path}: {answer.status}"
        return self.check(path)

    def check(self, where: str) -> str:
        page = self.page
        assert page.evaluate("window.pwned") is None, where
        assert urlsplit(page.url).netloc == urlsplit(self.server.url).netloc
        foreign = "iframe, object, embed, meta[http-equiv], base, script:not([src]), main style, main link"
        assert page.locator(foreign).count() == 0, where
        links = page.evaluate(
            "[...document.querySelectorAll('a[href], form, img')].map(e => e.action ?? e.href ?? e.src)"
        )
        for link in links:
            own = link.startswith(self.server.url + "/")
            assert own or re.match(r"(https?|mailto):", link), f"{where}: {link}"
        pictures = page.evaluate("[...document.images].map(e => e.src)")
        assert all("/agreement/" in src for src in pictures), f"{where}: {pictures}"
        assert self.bad == [], where
        return page.content()


def test_hostile_texts_on_labelers_pages(sqlite: Workspace, serve: Callable[[Workspace], Server], browser: Any) -> None:
    who = hostile_workspace(sqlite)
    watched = Watched(browser, serve(sqlite), session_of(sqlite, who["labeler"]))
    page = watched.page
    seen = [watched.visit("/"), watched.visit("/mine")]
    seen += [watched.visit(f"/guide/{kind}") for kind in KINDS]
    for kind in KINDS:
        with sqlite.write() as connection:
            mine = assignment.next_task(connection, who["labeler"], kind)
            assert mine is not None, kind
            assignment.save_draft(
                connection,
                who["labeler"],
                mine,
                {"note": HOSTILE["textarea"], "completion": " ".join(HOSTILE.values())},
            )
        seen.append(watched.visit(f"/task/{mine}"))
        page.locator("body").press("1")  # shortcuts, if the page has any
        assert "window.pwned" in page.locator("main").inner_text()  # shown as what it is: text
        watched.check(kind)
    for html in seen:
        assert SECRET_POLICY not in html
    assert not [url for url in watched.sent if SECRET_POLICY in url]
    watched.context.close()


def test_hostile_texts_on_the_owners_pages(
    sqlite: Workspace, serve: Callable[[Workspace], Server], browser: Any
) -> None:
    who = hostile_workspace(sqlite)
    watched = Watched(browser, serve(sqlite), session_of(sqlite, who["owner"]))
    page = watched.page
    with sqlite.read() as connection:
        everybody = list(connection.execute(select(people.c.id)).scalars())
    paths = ["/people", "/review", "/prompts", "/instructions", "/agreement", "/audit", "/instructions/ranking"]
    for path in [*paths, *(f"/people/{number}" for number in everybody[:3]), f"/people/{who['labeler']}"]:
        watched.visit(path)
    watched.visit("/review")
    assert "window.pwned" in page.locator("main").inner_text()
    watched.visit("/prompts")
    page.get_by_role("button", name="Read").first.click()
    watched.check("a text in quarantine")
    assert HOSTILE["textarea"] in page.locator(".notice .passage").inner_text()
    watched.visit("/instructions/ranking")
    page.get_by_role("button", name="Preview").click()
    watched.check("preview")
    assert page.locator("section.card img").count() == 0
    assert not page.locator("section.card a[href^='javascript'], section.card a[href^='data']").count()
    page.get_by_role("button", name="Publish").click()
    watched.check("published")
    watched.visit("/agreement/labelers.svg")
    watched.context.close()


def test_templates_in_texts_are_text(
    sqlite: Workspace, ids: dict[str, int], client: Callable[[str], TestClient]
) -> None:
    prompt = Prompt(id="p", text="{{7*7}} {{person.password}} {% raw %}")
    with sqlite.write() as connection:
        add_prompts(connection, [prompt])
        add_task(connection, "labels", prompt)
        mine = assignment.next_task(connection, ids["labeler"])
    assert "{{7*7}} {{person.password}} {% raw %}" in client("labeler").get(f"/task/{mine}").text


def test_policies_are_nowhere_in_labelers_responses(
    sqlite: Workspace, ids: dict[str, int], client: Callable[[str], TestClient]
) -> None:
    """Neither names nor anything that tells which completions are by the same policy: stored ids and order."""
    prompt = Prompt(id="secret-prompt-id", text="Which is better?", meta={"source": "secret-meta"})
    with sqlite.write() as connection:
        add_prompts(connection, [prompt])
        new = [Completion(text=f"answer {i}", policy=f"secret-policy-{i}", finish="length") for i in range(3)]
        for kind, texts in (("ranking", new), ("comparison", new[:2])):
            add_task(connection, kind, prompt, texts, Terms(capacity=5))
    labeler = client("labeler")
    for kind in ("ranking", "comparison"):
        place = labeler.post("/next", data={"kind": kind}).headers["location"]
        pages = [labeler.get(place), labeler.post(f"{place}/submit", data={}), labeler.get("/"), labeler.get("/mine")]
        with sqlite.write() as connection:
            number = int(place.rsplit("/", 1)[1])
            ranked = {"ranks": [1, 2] if kind == "comparison" else [1, 2, 3]}
            ratings = {"ratings": [{"quality": 4}] * 3} if kind == "ranking" else {}
            assignment.submit(connection, ids["labeler"], number, ranked | ratings, f"key-{kind}-0123456789")
        pages += [labeler.get(place), labeler.get(f"{place}?correct=1"), labeler.get("/mine")]
        for answer in pages:
            everything = answer.text + str(answer.headers) + str(answer.url)
            assert "secret-" not in everything
            assert "length" not in re.sub(r"(max|min|content-)length", "", everything)
