"""Answers of several models to the same prompts, side by side in the terminal; with a reward model, scores and wins."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text as Line

from tutelage.data.datasets import read_prompts
from tutelage.evaluation.scoring import leaves_room, readings
from tutelage.models.loading import load_policy
from tutelage.models.precision import full_precision
from tutelage.models.tokens import load_tokenizer
from tutelage.rewards.reward_model import RewardModel
from tutelage.runs import dropped
from tutelage.sampling.completions import Writer, complete, fits
from tutelage.settings.sampler import Sampling
from tutelage.shipped import resolve_model
from tutelage.stats.intervals import estimate
from tutelage.terminal import printable


def compare(
    models: Sequence[str], prompts: str, reward_model: str | None, limit: int, sampling: Sampling, seed: int
) -> None:
    """Print a table of prompts by models.

    Raises:
        ValueError: if a file or model is missing, or no prompt fits every model.
    """
    writers = []
    for name in models:
        source = resolve_model(name)
        tokenizer = load_tokenizer(source)
        writers.append(Writer(name, load_policy(source, tokenizer), tokenizer))
    loaded, new = read_prompts(prompts), sampling.max_new_tokens
    fitting = [p for p in loaded.records if all(fits(w, p, new) for w in writers)]
    reward = RewardModel(reward_model) if reward_model else None
    if reward is not None:
        rooms = [leaves_room(reward, w, fitting, new) for w in writers]
        fitting = [p for p, *room in zip(fitting, *rooms, strict=True) if all(room)]
    if not fitting:
        raise ValueError(f"{prompts}: no prompt leaves room for {new} tokens in every model's context")
    asked = fitting[:limit]
    lost = dropped({**loaded.dropped, "too long": len(loaded.records) - len(fitting)})
    answers = [complete(w, asked, seed, sampling) for w in writers]
    scores = None
    if reward is not None:
        sequences = [readings(reward, w, of) for w, of in zip(writers, answers, strict=True)]
        with full_precision():
            scores = [reward.scores(of) for of in sequences]
    table = Table(show_lines=True)
    for title in ("prompt", *models):
        table.add_column(Line(printable(title)), overflow="fold")
    for i, prompt in enumerate(asked):
        shown = prompt.text if isinstance(prompt.text, str) else prompt.text[-1].content
        cells = [c[i].completion.text + (f"\n({scores[m][i]:+.2f})" if scores else "") for m, c in enumerate(answers)]
        table.add_row(*(Line(printable(cell)) for cell in (shown, *cells)))
    console = Console()
    console.print(table)
    if lost:
        console.print(Line("prompts left out: " + "; ".join(f"{number:,} {why}" for why, number in lost.items())))
    if scores:
        for m, name in enumerate(models[1:], start=1):
            wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(scores[m], scores[0], strict=True)]
            rate = estimate(wins, prompts=[p.identity for p in asked], seed=seed)
            interval = f"{rate['mean']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"
            wins_of = f"{name} against {models[0]}: {interval} by {reward_model}, n = {rate['prompts']} prompts"
            console.print(Line(printable(wins_of)))
