"""The tables of a labeling workspace. Times are seconds since 1970; JSON columns hold what `answers.py` defines.

A migration in `migrations/versions/` makes each change of this page; a test holds that both say the same.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Everybody who signs in, and labelers whose work was imported or simulated (these have no password).
people = Table(
    "people", metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("sign_in", Text, nullable=False, unique=True),  # the name, case folded
    Column("pseudonym", Text, nullable=False, unique=True),  # what exports call them
    Column("password", Text),  # argon2
    Column("role", Text, nullable=False),
    Column("arm", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("areas", JSON, nullable=False),  # of sensitive content, self-assessed: screening's fourth criterion
    Column("created", Float, nullable=False),
    CheckConstraint("role IN ('owner', 'reviewer', 'labeler')", name="role"),
    CheckConstraint("arm IN ('training', 'heldout')", name="arm"),
    CheckConstraint("status IN ('screening', 'working', 'paused')", name="status"),
)  # fmt: skip

# One-time links: to join, or with `person`, to set a new password.
invites = Table(
    "invites", metadata,
    Column("token_hash", Text, primary_key=True),
    Column("role", Text, nullable=False),
    Column("arm", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("person", ForeignKey("people.id")),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("used", Float),
)  # fmt: skip

sessions = Table(
    "sessions", metadata,
    Column("token_hash", Text, primary_key=True),
    Column("person", ForeignKey("people.id"), nullable=False, index=True),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
)  # fmt: skip

# Pages that labelers read, in Markdown. An answer pins the version that was shown.
instructions = Table(
    "instructions", metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("text", Text, nullable=False),
    Column("author", ForeignKey("people.id")),
    Column("created", Float, nullable=False),
    UniqueConstraint("kind", "version"),
)  # fmt: skip

prompts = Table(
    "prompts", metadata,
    Column("id", Text, primary_key=True),
    Column("text", JSON(none_as_null=True)),  # none once its author's data is erased
    Column("user", Text, index=True),
    Column("split", Text),
    Column("use_case", Text),
    Column("meta", JSON, nullable=False),
    Column("quarantine", JSON(none_as_null=True)),  # kinds of personal data found; shown to no labeler while set
    Column("erased", Float),
)  # fmt: skip

completions = Table(
    "completions", metadata,
    Column("id", Integer, primary_key=True),
    Column("prompt", ForeignKey("prompts.id"), nullable=False, index=True),
    Column("text", JSON(none_as_null=True)),  # JSON, as a model may write characters that a text column refuses
    Column("policies", JSON, nullable=False),  # all that wrote this very text; never shown to labelers
    Column("finish", Text),
)  # fmt: skip

tasks = Table(
    "tasks", metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("prompt", ForeignKey("prompts.id"), nullable=False, index=True),
    Column("completions", JSON, nullable=False),  # ids
    Column("rate", Boolean, nullable=False),  # are completions rated as well as ranked?
    Column("reference", JSON(none_as_null=True)),  # researchers' answer, for screening and gold items
    Column("arm", Text),  # whose task; anybody's if null
    Column("capacity", Integer, nullable=False),  # how many labelers are wanted
    Column("open", Boolean, nullable=False),  # false once that many have submitted
    Column("created", Float, nullable=False),
    CheckConstraint("kind IN ('demonstration', 'ranking', 'labels', 'comparison')", name="kind"),
    CheckConstraint("purpose IN ('work', 'screening', 'gold')", name="purpose"),
    Index("ix_tasks_next", "open", "purpose", "id"),
)  # fmt: skip

assignments = Table(
    "assignments", metadata,
    Column("id", Integer, primary_key=True),
    Column("task", ForeignKey("tasks.id"), nullable=False),
    Column("person", ForeignKey("people.id"), nullable=False),
    Column("state", Text, nullable=False),
    Column("order", JSON, nullable=False),  # the shuffled presentation: position -> index of the completion
    Column("instruction", ForeignKey("instructions.id"), nullable=False),
    Column("leased", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("draft", JSON(none_as_null=True)),
    Column("skipped", JSON(none_as_null=True)),  # reason and note
    UniqueConstraint("task", "person"),
    CheckConstraint("state IN ('leased', 'submitted', 'skipped')", name="state"),
    Index("ix_assignments_person_state", "person", "state"),
    Index("ix_assignments_state_expires", "state", "expires"),
)  # fmt: skip

# Never changed, but for erasure: a correction is a new row, and the newest of an assignment counts.
answers = Table(
    "answers", metadata,
    Column("id", Integer, primary_key=True),
    Column("assignment", ForeignKey("assignments.id"), nullable=False),
    Column("number", Integer, nullable=False),  # 1, and one more for each correction
    Column("body", JSON(none_as_null=True)),
    Column("instruction", ForeignKey("instructions.id"), nullable=False),
    Column("seconds", Float, nullable=False),  # from opening to submission
    Column("active_seconds", Float),  # of these with the page in view, as the browser says
    Column("key", Text, nullable=False, unique=True),  # of the form: sent twice, stored once
    Column("created", Float, nullable=False),
    UniqueConstraint("assignment", "number"),
)  # fmt: skip

# A reviewer's quality 1–7 of a demonstration: screening's third criterion.
reviews = Table(
    "reviews", metadata,
    Column("id", Integer, primary_key=True),
    Column("answer", ForeignKey("answers.id"), nullable=False),
    Column("reviewer", ForeignKey("people.id"), nullable=False),
    Column("quality", Integer, nullable=False),
    Column("created", Float, nullable=False),
    UniqueConstraint("answer", "reviewer"),
    CheckConstraint("quality BETWEEN 1 AND 7", name="quality"),
)  # fmt: skip

# Append-only (the database refuses changes), written in the transaction of the act. Ids and counts, never texts.
events = Table(
    "events", metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("person", ForeignKey("people.id")),
    Column("kind", Text, nullable=False),
    Column("subject", Text),
    Column("detail", JSON, nullable=False),
    Index("ix_events_kind_subject_at", "kind", "subject", "at"),
)  # fmt: skip
