"""Migrations of databases that are full: nothing is lost, and one that fails or is killed changes nothing.

Each revision is filled as it was; a new one adds to `filled_rows` what its tables have.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, insert, select

from tutelage.labeling.store import engines
from tutelage.labeling.store.engines import known, make_engine, prepare_file, upgrade

SAID = "W\u00e4rme die Kanne \u202e\U0001f469\u200d\U0001f467 \x07\x00 \"';--"
TEXT = [{"role": "user", "content": SAID}, {"role": "assistant", "content": ""}]
WIDE = {"n": 2**53 + 1, "x": 0.1, "none": None, "deep": [[[["…"]]]], "a'b\"c": True}


def filled_rows(revision: str) -> dict[str, list[dict[str, Any]]]:
    """By table, in an order that foreign keys allow, rows with odd values and with none."""
    n = range(1, 101)
    rows = {
        "people": [{"id": i, "name": f"Ann {i}", "sign_in": f"ann {i}", "pseudonym": f"labeler-{i}",
                    "password": None if i % 3 else "$argon2id$v=19$…", "role": ("owner", "reviewer", "labeler")[i % 3],
                    "arm": ("training", "heldout")[i % 2], "status": ("screening", "working", "paused")[i % 3],
                    "areas": ["health", "law_and_politics"], "created": 1.7e9 + i / 3} for i in n],
        "prompts": [{"id": f"p{i}", "text": None if i % 9 == 0 else TEXT if i % 2 else f"Prompt {i}",
                     "user": None if i % 4 else f"u{i}", "split": ("train", "valid", None)[i % 3], "use_case": None,
                     "meta": WIDE, "quarantine": {"EMAIL": i} if i % 7 == 0 else None,
                     "erased": 1.7e9 if i % 9 == 0 else None} for i in n],
        "completions": [{"id": i, "prompt": f"p{i}", "text": "Ein Text\u2028", "policies": ["a", "b"], "finish": None}
                        for i in n],
        "instructions": [{"id": i, "kind": "ranking", "version": i, "text": "# Rank\n", "author": i, "created": 0.0}
                         for i in n],
        "tasks": [{"id": i, "kind": "ranking", "purpose": ("work", "gold")[i % 2], "prompt": f"p{i}",
                   "completions": [i, i], "rate": bool(i % 2), "reference": {"ranks": [1, 2]} if i % 2 else None,
                   "arm": None, "capacity": 10**6, "open": bool(i % 2), "created": 1e9} for i in n],
        "assignments": [{"id": i, "task": i, "person": i, "state": "submitted", "order": [1, 0], "instruction": i,
                         "leased": 1e9, "expires": 1e9 + 0.125, "draft": None, "skipped": None} for i in n],
        "answers": [{"id": i, "assignment": i, "number": 1, "body": {"ranks": [1, 2], "note": "\ud83d"},
                     "instruction": i, "seconds": i / 7, "active_seconds": None, "key": f"{i:020d}",
                     "created": 1e9} for i in n],
        "reviews": [{"id": i, "answer": i, "reviewer": i, "quality": i % 7 + 1, "created": 1e9} for i in n],
        "events": [{"id": i, "at": 1e9, "person": None if i % 2 else i, "kind": "submitted", "subject": str(i),
                    "detail": WIDE} for i in n],
        "sessions": [{"token_hash": f"{i:064x}", "person": i, "created": 0.0, "expires": 1e10} for i in n],
        "invites": [{"token_hash": f"{i:064x}", "role": "labeler", "arm": "training", "status": "paused",
                     "person": None, "created": 0.0, "expires": 1e10, "used": None} for i in n],
    }  # fmt: skip
    assert revision in ("0001",), f"say what revision {revision} has that the one before it has not"
    return rows


def rows(engine: Engine) -> dict[str, dict[Any, dict[str, Any]]]:
    """By table and key, all that is there, as the database itself describes its tables."""
    tables = MetaData()
    with engine.connect() as connection:
        tables.reflect(connection)
        return {
            table.name: {row[0]: dict(row._mapping) for row in connection.execute(select(table))}
            for table in tables.sorted_tables
        }


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An empty database."""
    sqlite = request.param == "sqlite"
    made = make_engine(f"sqlite:///{tmp_path}/labeling.db" if sqlite else request.getfixturevalue("new_database")())
    prepare_file(made, complete=False)
    yield made
    made.dispose()


def fill(engine: Engine, revision: str) -> dict[str, dict[Any, dict[str, Any]]]:
    upgrade(engine, revision=revision)
    tables = MetaData()
    with engine.begin() as connection:
        tables.reflect(connection)
        filled = filled_rows(revision)
        assert filled.keys() == tables.tables.keys() - {"alembic_version"}
        for name, content in filled.items():
            connection.execute(insert(tables.tables[name]), content)
    return rows(engine)


def kept(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Every row and every value of before is there after."""
    for table in before.keys() - {"alembic_version"}:
        assert after[table].keys() == before[table].keys()
        for key, row in before[table].items():
            assert after[table][key].items() >= row.items()


@pytest.mark.parametrize("revision", sorted(known()))
def test_from_every_revision(engine: Engine, revision: str) -> None:
    before = fill(engine, revision)
    assert all(len(before[name]) == 100 for name in before.keys() - {"alembic_version"})
    upgrade(engine)
    kept(before, rows(engine))


NEXT = """
import os, signal
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("answers", sa.Column("mood", sa.Text(), nullable=False, server_default="calm"))
    op.execute("UPDATE answers SET mood = 'glad' WHERE id > 50")
    with op.batch_alter_table("reviews") as batch:
        batch.alter_column("quality", type_=sa.Float())
    {end}
"""


def with_next(monkeypatch: pytest.MonkeyPatch, folder: Path, end: str) -> None:
    """A revision more, whose last act is `end`."""
    shutil.copytree(engines.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "0002_next.py").write_text(NEXT.format(end=end))
    monkeypatch.setattr(engines, "MIGRATIONS", folder)


def test_a_next_revision(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fill(engine, "0001")
    with_next(monkeypatch, tmp_path / "m", "pass")
    upgrade(engine)
    after = rows(engine)
    kept(before, after)
    assert [row["mood"] for row in after["answers"].values()] == ["calm"] * 50 + ["glad"] * 50
    assert after["alembic_version"].keys() == {"0002"}


def test_one_that_fails(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fill(engine, "0001")
    with_next(monkeypatch, tmp_path / "m", "raise RuntimeError")
    with pytest.raises(RuntimeError):
        upgrade(engine)
    assert rows(engine) == before


def test_one_that_is_killed(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fill(engine, "0001")
    with_next(monkeypatch, tmp_path / "m", "os.kill(os.getpid(), signal.SIGKILL)")
    script = (
        "import sys; from pathlib import Path; from tutelage.labeling.store import engines\n"
        "engines.MIGRATIONS = Path(sys.argv[1]); engines.upgrade(engines.make_engine(sys.argv[2]))"
    )
    url = engine.url.render_as_string(hide_password=False)
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "m"), url], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert rows(engine) == before
    (tmp_path / "m" / "versions" / "0002_next.py").write_text(NEXT.format(end="pass"))
    upgrade(engine)
    kept(before, rows(engine))
