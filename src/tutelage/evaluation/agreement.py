"""How far labelers agree, and whether a reward model agrees with them on the same pairs as they do with each other.

The paper sets its labelers' agreement (section 3.4) beside its reward models' accuracy (section 5.1); here both are
counted on the same pairs, each with a 95 % interval. What is counted: `stats/agreement.py`.

    tutelage agreement --rankings rankings.jsonl --reward-model runs/reward/model --output runs/agreement
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.data.datasets import read_rankings
from tutelage.data.records import Ranking
from tutelage.models.architecture import context_length
from tutelage.models.forward import all_scores
from tutelage.models.loading import load_scalar
from tutelage.models.precision import full_precision
from tutelage.models.tokens import encode_rankings, load_tokenizer
from tutelage.runs import dropped, inputs_of, open_run
from tutelage.settings.evaluation import AgreementConfig
from tutelage.stats.agreement import Measures, by_labeler, panels, scores_agreement, summary


def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rankings: Sequence[Ranking]
) -> tuple[list[Ranking], list[list[float]]]:
    """The rankings that fit a reward model's context, and its scores of their completions, each distinct one once.

    Raises:
        ValueError: if no ranking fits.
    """
    context = context_length(model)
    place: dict[tuple[int, ...], int] = {}
    kept, places = [], []
    for r, pairs in zip(rankings, encode_rankings(tokenizer, rankings), strict=True):
        sequences = [(*prompt, *completion) for prompt, completion in pairs]
        if max(map(len, sequences)) <= context:
            kept.append(r)
            places.append([place.setdefault(ids, len(place)) for ids in sequences])
    if not kept:
        raise ValueError(f"reward_model: none of {len(rankings)} rankings fits its context of {context} tokens")
    with full_precision():
        scores = all_scores(model, list(place)).tolist()
    return kept, [[scores[i] for i in own] for own in places]


def rows_of(measures: Measures) -> Iterator[tuple[str, str, str, str]]:
    """A table's rows: measure, value, interval, and what was counted."""
    for name, measure in measures.items():
        counted = ", ".join(
            f"{count:,.0f} {what.replace('_', ' ')}"
            for what, count in measure.items()
            if what not in ("mean", "low", "high")
        )
        interval = f"[{measure['low']:.3f}, {measure['high']:.3f}]"
        yield name.replace("_", " "), f"{measure['mean']:.3f}", interval, counted


def run(config: AgreementConfig) -> None:
    """Write the measures into done.json, under `labelers`, `by_labeler` and `reward_model`, and print a table."""
    opened = open_run("agreement", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    loaded = read_rankings(config.rankings, ties=True)
    rankings = loaded.records
    shared = sum(bool(panel.labeler_pairs) for panel in panels(rankings))
    if not shared:
        raise ValueError(
            f"{config.rankings}: no prompt was ranked by two labelers, so nobody can agree; let several rank the same "
            "completions, and give each ranking its `labeler`"
        )
    if config.reward_model:
        tokenizer = load_tokenizer(config.reward_model)
        reward_model = load_scalar(config.reward_model, tokenizer)
    opened.begin(f"{len(rankings):,} rankings, {shared:,} prompts that two labelers ranked", lost=loaded.dropped)
    measures = summary(rankings, config.seed, config.draws)
    rows = list(rows_of(measures))
    model: Measures = {}
    too_long = 0
    if config.reward_model:
        kept, scores = score(reward_model, tokenizer, rankings)
        too_long = len(rankings) - len(kept)
        model = scores_agreement(kept, scores, config.seed, config.draws)
        rows += rows_of(model)
    opened.finish(
        rankings=len(rankings),
        shared_prompts=shared,
        labelers=measures,
        by_labeler=by_labeler(rankings, config.seed, config.draws),
        reward_model=model,
        too_long=too_long,
        dropped=dropped(loaded.dropped, reward_model={"too long": too_long}),
    )
    table = Table("agreement", "value", "95 % interval", "counted")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
