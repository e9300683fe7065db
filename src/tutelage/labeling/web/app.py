"""The web application of a labeling workspace, and the server that `tutelage label serve` runs."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from typing import NoReturn

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import RedirectResponse, Response

from tutelage.labeling.store import accounts
from tutelage.labeling.store.answers import Mistake
from tutelage.labeling.store.database import Workspace
from tutelage.labeling.store.instructions import ensure_instructions
from tutelage.labeling.web import entrance, manage, review, work
from tutelage.labeling.web.render import STATIC, page
from tutelage.labeling.web.security import Guard
from tutelage.terminal import message


def create_app(workspace: Workspace) -> FastAPI:
    """The application. Its routes are in `entrance`, `work` (labelers), `manage` (owner) and `review` (reviewers)."""
    app = FastAPI(title="tutelage", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.workspace = workspace
    with workspace.write() as connection:
        ensure_instructions(connection)
    for room in (entrance, work, manage, review):
        app.include_router(room.router)

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            raise HTTPException(404)
        content, kind = STATIC[name]
        return Response(content, media_type=kind, headers={"cache-control": "public, max-age=31536000, immutable"})

    @app.exception_handler(StarletteHTTPException)
    def refused(request: Request, error: StarletteHTTPException) -> Response:
        if error.status_code == 401:
            return RedirectResponse("/sign-in", 303)
        titles = {403: "Not allowed", 404: "There is nothing here", 405: "Not possible"}
        title = titles.get(error.status_code, "That did not work")
        return page(request, "message.html.j2", status=error.status_code, title=title, text=error.detail)

    @app.exception_handler(RequestValidationError)
    def no_such_address(request: Request, error: RequestValidationError) -> Response:
        return refused(request, HTTPException(404))  # only addresses are validated so, forms are read by their pages

    @app.exception_handler(LookupError)
    def missing(request: Request, error: LookupError) -> Response:
        if isinstance(error, KeyError | IndexError):
            raise error  # a mistake of ours, not an address that leads nowhere
        return page(request, "message.html.j2", status=404, title="There is nothing here", text=str(error))

    @app.exception_handler(Mistake)
    def wrong(request: Request, error: Mistake) -> Response:
        return page(request, "message.html.j2", status=400, title="That did not work", text=str(error))

    @app.exception_handler(accounts.Paused)
    def paused(request: Request, error: accounts.Paused) -> Response:
        return page(request, "sign_in.html.j2", status=403, problem=str(error))

    app.add_middleware(Guard)
    return app


def serve(workspace: Workspace, host: str, port: int) -> None:
    """Serve a workspace until interrupted or told to end; without an owner, print the link that makes one."""
    import uvicorn

    with socket.socket() as probe:  # before a link is printed that would lead to somebody else's server
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
    app = create_app(workspace)
    place = f"http://{host}:{port}"
    with workspace.write() as connection:
        token = accounts.owner_link(connection)
    if token:
        print(f"First, become the owner (this link works once): {place}/join/{token}", file=sys.stderr)
    print(f"Serving {workspace.folder} at {place}; stop with Ctrl-C", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, _stop)
    handler = logging.StreamHandler()
    handler.setFormatter(Printable("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    # No log of addresses, as links hold tokens.
    uvicorn.run(app, host=host, port=port, log_config=None, log_level="warning", access_log=False, server_header=False)


class Printable(logging.Formatter):
    """Lines of the server's log as a terminal may show them, whatever an error quotes."""

    def format(self, record: logging.LogRecord) -> str:
        return message(super().format(record))


def _stop(number: int, frame: object) -> NoReturn:
    """Leave by the way on which the workspace is closed. uvicorn raises the signal again once it has stopped."""
    raise SystemExit(0)
