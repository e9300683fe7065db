"""What owner and reviewers look at: demonstrations to rate, warnings and skips, and how far labelers agree."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from fastapi import APIRouter, FastAPI, HTTPException, Request
from starlette.responses import RedirectResponse, Response

from tutelage.labeling.store import accounts, exchange, overview, screening
from tutelage.labeling.store.answers import SKIP_REASONS, Mistake
from tutelage.labeling.web import plots
from tutelage.labeling.web.render import page
from tutelage.labeling.web.security import Form, Id, Owner, Reviewer
from tutelage.stats import agreement

router = APIRouter()
SHOWN = 10  # demonstrations on one page
SKIPS = 100
DRAWS = 1000
MEASURES = {  # as `agreement.summary` names them: title, and whether it is a share
    "strict": ("Agreement on pairs that both ordered", True),
    "three_way": ("Three-way agreement (better, same, worse)", True),
    "half_credit": ("The same, a tie on one side counting half", True),
    "tie_rate": ("Pairs given as ties", True),
    "kendall_tau_b": ("Kendall's τ-b", False),
    "alpha_ordinal": ("Krippendorff's α, ordinal", False),
    "alpha_nominal": ("Krippendorff's α, nominal", False),
    "flags_kappa": ("Flags of completions, Fleiss' κ", False),
}
ARMS = {"training": "Training labelers", "heldout": "Held-out labelers"}
PAPER = {"training": "72.6 ± 1.5 %", "heldout": "77.3 ± 1.3 %"}  # section 3.4


# Demonstrations, warnings, skips


@router.get("/review")
def review_page(request: Request, reviewer: Reviewer) -> Response:
    with request.app.state.workspace.read() as connection:
        waiting, left = screening.waiting_demonstrations(connection, reviewer.id, SHOWN)
        gold = screening.gold_results(connection)
        warnings = screening.warnings(connection)
        paused = accounts.paused_names(connection)
        skips = overview.latest_skips(connection, SKIPS)
    return page(
        request, "manage_review.html.j2", reviewer, waiting=waiting, left=left, gold=gold, warnings=warnings,
        skips=skips, reasons=SKIP_REASONS, paused=paused,
    )  # fmt: skip


@router.post("/review/{answer}")
def rate(request: Request, reviewer: Reviewer, answer: Id, fields: Form) -> Response:
    quality = str(fields.get("quality", ""))
    if quality not in tuple("1234567"):
        raise Mistake("quality: choose a number from 1 to 7")
    try:
        with request.app.state.workspace.write() as connection:
            screening.rate_demonstration(connection, answer, reviewer.id, int(quality))
    except screening.NotYours:
        raise HTTPException(403, "Nobody rates their own demonstration.") from None
    return RedirectResponse("/review", 303)


# Agreement


@dataclass(frozen=True)
class Insight:
    """What is computed from all answers at once, and kept until there is another answer."""

    key: tuple[int, ...]
    measures: dict[str, agreement.Measures]  # of `all` and of each arm
    labelers: dict[str, agreement.Measures]
    arms: dict[str, str]
    rankings: int
    plots: dict[str, bytes] = field(repr=False)


_computing = threading.Lock()  # one at a time; matplotlib wants that too


def insight(app: FastAPI) -> Insight:
    """Agreement and plots of the work so far. Reads in a transaction of its own, computes after it."""
    with app.state.workspace.read() as connection:
        key = overview.state_of_answers(connection)
    with _computing:
        known: Insight | None = getattr(app.state, "insight", None)
        if known is None or known.key != key:
            known = app.state.insight = _compute(app)
    return known


def _compute(app: FastAPI) -> Insight:
    with app.state.workspace.read() as connection:
        key = overview.state_of_answers(connection)
        rankings = exchange.stored_rankings(connection, names=True)
        newest = exchange.newest_answers(connection)
        arms = {person.name: person.arm for person in accounts.everybody(connection)}
        rows = overview.answer_times(connection)
    groups = {"all": rankings} | {a: [r for r in rankings if arms.get(r.labeler or "") == a] for a in ARMS}
    measures = {name: agreement.summary(group, draws=DRAWS) for name, group in groups.items()}
    for name, values in measures.items():
        votes = exchange.flag_votes([r for r in newest if name in ("all", r.arm)])
        if kappa := agreement.flags_kappa(votes, draws=DRAWS):
            values["flags_kappa"] = kappa
    labelers = agreement.by_labeler(rankings, draws=DRAWS)
    rates = {name: values["strict"] for name, values in labelers.items() if values.get("strict", {}).get("pairs")}
    times = [row.seconds for row in rows if row.kind == "ranking"]
    days = Counter(int(row.created // 86400) for row in rows if 0 <= row.created < exchange.LATEST)
    drawn = {
        "labelers": plots.labelers(rates, arms) if rates else None,
        "times": plots.times(times) if times else None,
        "days": plots.days(days) if days else None,
    }
    kept = {name: svg for name, svg in drawn.items() if svg is not None}
    return Insight(key, measures, labelers, arms, len(rankings), kept)


@router.get("/agreement")
def agreement_page(request: Request, owner: Owner) -> Response:
    current = insight(request.app)
    return page(
        request, "manage_agreement.html.j2", owner, found=current, measures=MEASURES, arms=ARMS, paper=PAPER,
        version="-".join(map(str, current.key)), alts=plots.ALTS,
    )  # fmt: skip


@router.get("/agreement/{plot}.svg")
def plot(request: Request, owner: Owner, plot: str) -> Response:
    drawn = insight(request.app).plots
    if plot not in drawn:
        raise HTTPException(404, "There is no such plot, or nothing to draw yet.")
    return Response(drawn[plot], media_type="image/svg+xml")
