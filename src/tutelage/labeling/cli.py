"""The commands `tutelage label …`: their options, and which function each calls."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from tutelage.labeling import commands
from tutelage.labeling.store.answers import KINDS
from tutelage.labeling.store.engines import in_words
from tutelage.labeling.store.intake import Rules
from tutelage.settings.options import Parser, add_settings, checked, settings

Port = Annotated[int, Field(ge=0, le=65535)]
DRY = ("prompts", "queue", "import", "erase")  # what has a dry run


def add_commands(acts: Any) -> None:
    """Add the commands to argparse's subparsers."""
    add = partial(_add, acts)
    _about_people(add)
    _about_tasks(add)
    _about_files(add)
    text = "make a workspace of a backup"
    restore = acts.add_parser("restore", help=text, description=text)
    restore.add_argument("file", type=Path, help="what `backup` wrote")
    restore.add_argument("workspace", type=Path, help="the new workspace's folder")
    restore.add_argument(
        "--database", help="an empty database, postgresql+psycopg://USER@HOST/NAME (default: SQLite in the workspace)"
    )


def _add(acts: Any, name: str, text: str) -> Parser:
    parser: Parser = acts.add_parser(name, help=text, description=text)
    parser.add_argument("workspace", type=Path, help="the workspace's folder")
    if name in DRY:
        parser.add_argument("--dry-run", action="store_true", help="say what it would do, and keep nothing of it")
    return parser


def _about_people(act: Any) -> None:
    serve = act("serve", "serve the workspace's pages, making it if it is not there; prints the owner's one-time link")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=checked(Port), default=8080, help="port to listen on (default: 8080)")
    serve.add_argument(
        "--database", help="postgresql+psycopg://USER@HOST/NAME, remembered (default: SQLite in the workspace)"
    )

    invite = act("invite", "print a one-time link for a new person, or for a new password")
    invite.add_argument("--role", choices=["owner", "reviewer", "labeler"], help="default: labeler")
    invite.add_argument("--arm", choices=["training", "heldout"], help="heldout never trains (default: training)")
    invite.add_argument("--screening", action="store_true", help="let them do the screening tasks first")
    invite.add_argument("--name", help="somebody who is there, to set a new password")
    invite.add_argument(
        "--url", default="http://127.0.0.1:8080",
        help="where people reach the server (default: %(default)s, where `serve` listens unless told otherwise)",
    )  # fmt: skip


def _about_tasks(act: Any) -> None:
    prompts = act("prompts", "take prompts in by the paper's rules, and report what each rule dropped")
    prompts.add_argument("file", help="prompts, in any accepted format")
    prompts.add_argument(
        "--queue", action="append", choices=["demonstration", "labels"], default=[],
        help="queue such a task on every prompt taken",
    )  # fmt: skip
    prompts.add_argument("--output", type=Path, help="also write the prompts taken, with their splits, for `collect`")
    add_settings(prompts, Rules)

    queue = act("queue", "queue a file of candidates, answers or prompts as tasks")
    queue.add_argument("file", help="candidates.jsonl, answers.jsonl, or prompts in any accepted format")
    queue.add_argument("--kind", choices=list(KINDS), default="ranking", help="default: ranking")
    queue.add_argument(
        "--purpose", choices=["work", "screening", "gold"], default="work",
        help="rows of screening and gold items carry their answer, `ranks` or `annotations` (default: work)",
    )  # fmt: skip
    queue.add_argument("--baseline", help="for comparisons: the model that the others are compared with")
    queue.add_argument(
        "--arm", choices=["training", "heldout"],
        help="whose demonstrations, labels or comparisons (default: training; comparisons: heldout)",
    )  # fmt: skip
    queue.add_argument("--labelers", type=int, help="labelers for each task (default: 1)")
    queue.add_argument("--overlap", type=float, help="share of rankings with one more (default: 0.1)")
    queue.add_argument(
        "--no-rate", dest="rate", action="store_false", default=None, help="ask for ranks only, not for ratings"
    )


def _about_files(act: Any) -> None:
    act("import", "take in rankings with their labelers, as `export` writes them").add_argument("file", help="rankings")

    export = act("export", "write what labelers have answered, as the stages read it")
    export.add_argument("--output", type=Path, required=True, help="folder to write into")
    export.add_argument("--pairs", action="store_true", help="also chosen/rejected pairs of the training rankings")
    export.add_argument("--table", action="store_true", help="also one table for spreadsheets")

    act("erase", "remove all prompts by an author, and all that was written about them").add_argument(
        "--user", required=True, help="the author's id, as the prompts were taken in with"
    )
    act("status", "how much is done")
    act("backup", "write the whole workspace into one file, while people work").add_argument(
        "file", type=Path, help="the backup; a name that is not there yet"
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ValueError: for a user's mistake, or a database that cannot be used.
    """
    with in_words():
        _run(arguments)


def _run(a: argparse.Namespace) -> None:
    match a.act:
        case "serve":
            commands.serve(a.workspace, a.host, a.port, a.database)
        case "invite":
            commands.invite(a.workspace, a.role, a.arm, a.screening, a.name, a.url)
        case "prompts":
            commands.take_prompts(a.workspace, a.file, settings(Rules, a), a.queue, a.output, a.dry_run)
        case "queue":
            request = commands.QueueRequest(
                a.file, a.kind, a.purpose, baseline=a.baseline, labelers=a.labelers, overlap=a.overlap, rate=a.rate,
                arm=a.arm,
            )  # fmt: skip
            commands.queue_file(a.workspace, request, a.dry_run)
        case "import":
            commands.import_file(a.workspace, a.file, a.dry_run)
        case "export":
            commands.export(a.workspace, a.output, a.pairs, a.table)
        case "erase":
            commands.erase(a.workspace, a.user, a.dry_run)
        case "status":
            commands.status(a.workspace)
        case "backup":
            commands.back_up(a.workspace, a.file)
        case "restore":
            commands.restore(a.file, a.workspace, a.database)
