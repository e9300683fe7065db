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
from tutelage.stats.bradley_terry import ratings
from tutelage.stats.intervals import estimate, for_other_labelers, standard_error, wilson
from tutelage.stats.length_control import length_controlled

__all__ = [
    "by_labeler", "cohen_kappa", "estimate", "flags_kappa", "fleiss_kappa", "for_other_labelers", "kendall_tau_b",
    "krippendorff_alpha", "length_controlled", "pairwise_agreement", "ratings", "scores_agreement", "standard_error",
    "summary", "wilson",
]  # fmt: skip
