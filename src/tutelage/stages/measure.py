"""A trained reward model on any rankings or pairs: accuracy, loss and calibration.

The numbers are those that training reports of the rankings it holds out.

    tutelage measure --reward-model runs/reward/model --rankings pairs.jsonl --output runs/measure
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from tutelage.data.datasets import read_rankings
from tutelage.files import fingerprint
from tutelage.models.architecture import context_length
from tutelage.models.loading import load_scalar
from tutelage.models.precision import full_precision
from tutelage.models.tokens import load_tokenizer
from tutelage.runs import dropped, identity_of, inputs_of, open_run
from tutelage.settings.reward import MeasureConfig
from tutelage.stages.reward import encode, evaluate, verdict


def run(config: MeasureConfig) -> None:
    """Measure a trained model: accuracy, loss and calibration into done.json, a table and the verdict on the screen."""
    opened = open_run("measure", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    tokenizer = load_tokenizer(config.reward_model)
    model = load_scalar(config.reward_model, tokenizer)
    context = context_length(model)
    loaded = read_rankings(config.rankings)
    elements, too_long = encode(loaded.records, tokenizer, context, context)
    if not elements:
        raise ValueError(
            f"{config.rankings}: no ranking left to measure by (dropped: {loaded.dropped}, too long: {too_long})"
        )
    trained, source = Path(config.reward_model).parent, Path(config.rankings)
    learned_from = identity_of(trained)["inputs"] if (trained / "inputs.json").exists() else {}
    its_own = {mark for name, mark in learned_from.items() if name.partition(".")[0] == "rankings"}
    if source.exists() and fingerprint(source) in its_own:
        opened.warn("the reward model was trained on these very rankings; what counts is its accuracy on others")
    unused = dropped({**loaded.dropped, "too long": too_long})
    opened.begin(f"{len(elements):,} rankings to measure by", lost=unused)
    with full_precision():
        measures = evaluate(model, elements, config.micro_batch_tokens, config.seed)
    table = Table("rankings", "pairs", "in order", "95 % interval", "loss, nats")
    counts = (f"{measures[name]:,}" for name in ("rankings", "pairs"))
    interval = f"[{measures['low']:.3f}, {measures['high']:.3f}]"
    table.add_row(*counts, f"{measures['accuracy']:.3f}", interval, f"{measures['loss']:.3f}")
    Console().print(table)
    print(verdict(measures))
    opened.finish(dropped=unused, verdict=verdict(measures), **measures)
