"""What stands between a request and a page: same-site checks, size limits, headers, sessions and roles.

Cross-site requests are told by Sec-Fetch-Site and, from browsers too old to send it, by Origin; so forms need no token.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException, Path, Request
from starlette.datastructures import FormData, Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutelage.labeling.store.accounts import SESSION_SECONDS, Paused, whose_session
from tutelage.labeling.store.engines import cause_of, is_broken_off, is_outage
from tutelage.terminal import message

COOKIE = "tutelage_session"
BODY_BYTES = 2_000_000
ATTEMPTS = 3
OUTAGE = (
    "The workspace's database cannot be used just now, so nothing was stored. Go back, and send the page again in a "
    "minute: what you wrote is still there. If this comes back, tell the owner."
)
log = logging.getLogger("uvicorn.error")
SAFE = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class TooLarge(Exception):
    """The body is longer than any honest form."""


class Body:
    """What a client sends, up to BODY_BYTES, kept so that a request can be answered anew."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept: list[Message] = []
        self._bytes = 0

    def again(self) -> Receive:
        """A reader from the start."""
        place = 0

        async def read() -> Message:
            nonlocal place
            if place == len(self._kept):
                message = await self._receive()
                self._bytes += len(message.get("body", b""))
                if self._bytes > BODY_BYTES:
                    raise TooLarge
                self._kept.append(message)
            place += 1
            return self._kept[place - 1]

        return read


class Guard:
    """ASGI middleware around the whole application: refuses cross-site changes and long bodies, adds the headers.

    What PostgreSQL broke off when it was restarted is done again. A form that is sent twice is stored once, so that is
    safe even if the commit had gone through.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = Body(receive)
        started = False

        async def sealed(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if scope["method"] not in SAFE and is_cross_site(headers):
            await PlainTextResponse("Refused: this request came from another site.", 403)(scope, receive, sealed)
        elif not re.fullmatch("[0-9]{1,18}", length) or int(length) > BODY_BYTES:
            await PlainTextResponse("Refused: too long.", 413)(scope, receive, sealed)
        else:
            try:
                for attempt in range(ATTEMPTS):
                    try:
                        await self.app(scope, body.again(), sealed)
                        break
                    except Exception as error:
                        if not is_broken_off(error) or started or attempt == ATTEMPTS - 1:
                            raise
            except TooLarge:
                await PlainTextResponse("Refused: too long.", 413)(scope, receive, sealed)
            except Exception as error:
                if is_outage(error) and not started:
                    # No address, which may hold a link's token, and no statement with what somebody wrote.
                    page = getattr(scope.get("route"), "path", "a page")
                    log.error(message(f"{scope['method']} {page}: {cause_of(error)[:500]}"))
                    await PlainTextResponse(OUTAGE, 503)(scope, receive, sealed)
                    return
                if not started:  # or the answer to a mistake of ours would be the only one without the headers
                    await PlainTextResponse("Something went wrong here.", 500)(scope, receive, sealed)
                raise  # to the server's log


def is_cross_site(headers: Headers) -> bool:
    """Whether a browser says that another site made this request; what is no browser says nothing and may pass."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


def allow(*roles: str) -> Callable[[Request], Any]:
    """A dependency that gives the signed-in person, if their role is one of these.

    Raises:
        HTTPException: 401 if nobody is signed in (the app sends browsers to the entrance), 403 for another role.
        Paused: if they are paused.
    """

    def person(request: Request) -> Any:
        token = request.cookies.get(COOKIE)
        with request.app.state.workspace.read() as connection:
            who = whose_session(connection, token) if token else None
        if who is None:
            raise HTTPException(401)
        if who.status == "paused":
            raise Paused
        if who.role not in roles:
            raise HTTPException(403, "This page is not yours to see.")
        return who

    return person


def set_session(response: Any, request: Request, token: str) -> None:
    """Put a session's token into a cookie that scripts cannot read and other sites cannot send along."""
    response.set_cookie(
        COOKIE, token, max_age=int(SESSION_SECONDS), httponly=True, samesite="lax", secure=request.url.scheme == "https"
    )


async def form(request: Request) -> FormData:
    """The fields of a form; files are refused, and characters that a text column cannot hold become U+FFFD.

    Raises:
        HTTPException: 400 if it is not a form.
    """
    fields = await request.form(max_files=0, max_fields=500)
    return FormData([(name, storable(str(value))) for name, value in fields.multi_items()])


def storable(text: str) -> str:
    """A text with what no text column holds, halves of surrogate pairs and nulls, replaced."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


# What pages ask for: a form's fields, a row's number as the databases' integers hold it, and whoever is signed in, if
# the page is theirs to see.
Form = Annotated[FormData, Depends(form)]
Id = Annotated[int, Path(ge=1, le=2**31 - 1)]
Owner = Annotated[Any, Depends(allow("owner"))]
Reviewer = Annotated[Any, Depends(allow("owner", "reviewer"))]
Anybody = Annotated[Any, Depends(allow("owner", "reviewer", "labeler"))]
