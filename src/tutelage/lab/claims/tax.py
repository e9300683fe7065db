"""Claims about the alignment tax: the loss on held-out pretraining text, document by document. Nobody judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tutelage.lab.claims import experiments as runs
from tutelage.lab.claims.evidence import Array, Column, Outcome, above, average, below, point, resampled
from tutelage.lab.claims.reading import Gauge, read_gauge
from tutelage.settings.claims import BETA, GAMMA, Scale

Seeds = Mapping[int, Path]
MOST = 0.5  # of the tax, which the mixture is to take back


def tax(seeds: Seeds, scale: Scale) -> Outcome:
    """PPO's rise over SFT, in nats per token, and the share of it that PPO-ptx takes back."""
    gauges = {s: {name: read_gauge(f, name) for name in ("base", "sft", "ppo", "ppo_ptx")} for s, f in seeds.items()}

    def rise(of: Mapping[str, Gauge], name: str) -> Column:
        documents = [f"{i}" for i in range(len(of["sft"].nats))]
        return Column(documents, of[name].nats - of["sft"].nats, of["sft"].tokens)

    rises = {
        name: {s: _own_documents(s, rise(of, name)) for s, of in gauges.items()} for name in ("base", "ppo", "ppo_ptx")
    }
    tables = {s: [np.stack([of[n].nats for n in ("sft", "ppo", "ppo_ptx")], axis=1)] for s, of in gauges.items()}
    return Outcome(
        [
            average("loss of PPO, less SFT's (nats per token)", rises["ppo"], above()),
            resampled(f"share of it that PPO-ptx takes back, less {MOST}", tables, _taken_back, above()),
            average("loss of PPO-ptx, less SFT's", rises["ppo_ptx"], below(), counts=False),
            average("loss of the base, less SFT's", rises["base"], below(), counts=False),
        ],
        [point("loss", s, x, g.loss) for s, of in gauges.items() for x, g in enumerate(of.values())],
    )


def _own_documents(seed: int, column: Column) -> Column:
    """Documents are numbered anew at each seed."""
    return Column([f"{seed}/{unit}" for unit in column.units], column.values, column.out_of)


def _taken_back(means: Sequence[Array]) -> float:
    sft, ppo, ptx = means[0]
    return float((ppo - ptx) / (ppo - sft)) - MOST if ppo > sft else float("nan")


def ptx_not_kl(seeds: Seeds, scale: Scale) -> Outcome:
    """How much more loss on text the sweep of beta has where it earns PPO-ptx's score, in nats per token.

    The sweep's loss at that score is interpolated along the line through its policies in order of score. Beyond its
    highest score that policy's loss counts, which is in beta's favour.
    """
    betas = [beta for beta in scale.betas if beta > 0]
    names = [runs.beta_name(beta) for beta in betas]
    ptx = [runs.gamma_name(gamma) for gamma in scale.gammas]
    gauges = {s: {n: read_gauge(f, n) for n in (*names, *ptx, "sft")} for s, f in seeds.items()}

    def tables(of: Mapping[str, Gauge]) -> list[Array]:
        order = (*names, runs.gamma_name(GAMMA))
        losses = np.stack([*(of[n].nats for n in order), of["sft"].tokens], axis=1)
        return [np.stack([of[n].column("score") for n in order], axis=1), losses]

    def excess(means: Sequence[Array]) -> float:
        scores, losses = means[0], means[1][:-1] / means[1][-1]
        order = np.argsort(scores[:-1], kind="stable")
        return float(np.interp(scores[-1], scores[:-1][order], losses[:-1][order]) - losses[-1])

    def column(of: Mapping[str, Gauge], more: str, less: str) -> Column:
        return Column(of["sft"].prompts, of[more].column("score") - of[less].column("score"))

    main, largest = runs.beta_name(BETA), names[-1]
    parts = [
        resampled(
            "loss of plain PPO at PPO-ptx's score, less PPO-ptx's (nats per token)",
            {s: tables(of) for s, of in gauges.items()}, excess, above(),
        ),
        average(
            f"score at beta {betas[-1]:g}, less that at {BETA:g}",
            {s: column(of, largest, main) for s, of in gauges.items()}, below(),
        ),
    ]  # fmt: skip
    if len(ptx) > 1:
        parts.append(average(
            f"score at gamma {scale.gammas[-1]:g}, less that at {scale.gammas[0]:g}",
            {s: column(of, ptx[-1], ptx[0]) for s, of in gauges.items()}, below(), counts=False,
        ))  # fmt: skip
    points = [
        point("beta" if n in names else "gamma" if n in ptx else "sft", s, g.mean("score"), g.loss)
        for s, of in gauges.items()
        for n, g in of.items()
    ]
    return Outcome(parts, points)
