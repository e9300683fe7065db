"""BLEU by sacrebleu and ROUGE-L by rouge-score, with what an interval needs: counts of each sample that can be summed.

Both are in the extra `tutelage[benchmarks]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def bleu_counts(samples: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """(n, 10) counts of n samples: matching n-grams of orders 1 to 4, all n-grams of orders 1 to 4, and the lengths of
    the sample and of its closest reference."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(effective_order=True)
    rows = [metric.sentence_score(sample, list(own)) for sample, own in zip(samples, references, strict=True)]
    return np.array([[*r.counts, *r.totals, r.sys_len, r.ref_len] for r in rows], dtype=float)


def bleu(counts: np.ndarray) -> float:
    """Corpus BLEU from 0 to 100 of summed counts (10,), smoothed as sacrebleu does by default (Post 2018)."""
    from sacrebleu.metrics import BLEU

    whole = [round(c) for c in counts]
    result = BLEU.compute_bleu(whole[:4], whole[4:8], whole[8], whole[9], smooth_method="exp")
    return float(vars(result)["score"])


def rouge_l() -> Callable[[str, Sequence[str]], float]:
    """A function: the best F-measure of the longest common subsequence over the references, from 0 to 1, words stemmed
    (Lin 2004, as rouge-score computes it)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return lambda sample, references: float(scorer.score_multi(references, sample)["rougeL"].fmeasure)
