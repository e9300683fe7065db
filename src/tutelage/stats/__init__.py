"""Intervals whose unit is the prompt, and how far labelers agree."""

from tutelage.stats.agreement import (
    by_labeler,
    cohen_kappa,
    flags_kappa,
    fleiss_kappa,
    kendall_tau_b,
    krippendorff_alpha,
    pairwise_agreement,
    scores_agreement,
    summary,
)
from tutelage.stats.intervals import estimate, standard_error, wilson

__all__ = [
    "by_labeler", "cohen_kappa", "estimate", "flags_kappa", "fleiss_kappa", "kendall_tau_b",
    "krippendorff_alpha", "pairwise_agreement", "scores_agreement", "standard_error", "summary", "wilson",
]  # fmt: skip
