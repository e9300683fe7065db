"""A reward model on each held-out ranking by itself, so that two of them can be compared ranking by ranking."""

from __future__ import annotations

import torch

from tutelage.data.datasets import read_rankings, write_jsonl
from tutelage.models.forward import group_scores
from tutelage.models.precision import full_precision
from tutelage.models.tokens import encode_rankings
from tutelage.objectives.reward import ranking_accuracy, ranking_loss
from tutelage.rewards.reward_model import RewardModel
from tutelage.runs import inputs_of, open_run
from tutelage.settings.claims import MarksConfig


def run(config: MarksConfig) -> None:
    """Write marks.jsonl: of each ranking the set, prompt, labeler, summed loss in nats, pairs in order, and pairs."""
    opened = open_run("marks", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    reward = RewardModel(config.reward_model)
    sets = {name: read_rankings(source).records for name, source in config.rankings.items()}
    opened.begin(f"{sum(map(len, sets.values())):,} rankings in {len(sets)} sets")
    rows = []
    for name, rankings in sets.items():
        sequences = [[p + c for p, c in pairs] for pairs in encode_rankings(reward.tokenizer, rankings)]
        with full_precision():
            scores = group_scores(reward.model, sequences)
        for ranking, own in zip(rankings, scores, strict=True):
            ranks = torch.tensor(ranking.ranks)
            right, pairs = ranking_accuracy(own, ranks)
            loss = float(ranking_loss(own, ranks)) * int(pairs)
            row = {"loss": loss, "right": float(right), "pairs": int(pairs)}
            rows.append({"set": name, "prompt": ranking.prompt.id, "labeler": ranking.labeler, **row})
    write_jsonl(opened.folder / "marks.jsonl", rows)
    opened.finish(rankings=len(rows))
