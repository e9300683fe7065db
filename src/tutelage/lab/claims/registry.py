"""The claims by name: what is claimed and where, by which experiment it is checked, and what is expected of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tutelage.lab.claims import experiments as runs
from tutelage.lab.claims import optimum, overoptimization, preference, reward_models, tax
from tutelage.lab.claims.evidence import Outcome
from tutelage.settings.claims import Scale


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, or of the work around it.

    `figure` is the paper's number and `place` where it stands; `experiment` and `expected` are ours; `axes` name what
    the points of its figure are. `needs` are the runs that `measure` reads.
    """

    name: str
    sentence: str
    figure: str
    place: str
    experiment: str
    expected: str
    judge: str
    axes: tuple[str, str]
    needs: Callable[[Scale], list[str]]
    measure: Callable[[Mapping[int, Path], Scale], Outcome]

    def left_out(self, scale: Scale) -> str | None:
        """Why the claim cannot be checked at this scale, if so."""
        if self.name == "small_beats_large" and not scale.large_tokens:
            return "a large base takes too long to pretrain for `--fast`"
        return None


LABELERS = "simulated training labelers' rankings of held-out prompts"
GOLD = "gold, the noise-free preference"


def _gauges(names: list[str]) -> list[str]:
    return [f"gauge_{name}" for name in names]


def _betas(scale: Scale) -> list[str]:
    return [runs.beta_name(beta) for beta in scale.betas]


def _stops(scale: Scale, size: int) -> list[str]:
    return [runs.stop_name(scale, size, episodes) for episodes in scale.stops]


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "one_element", "A ranking's pairs as one batch element avoid the overfitting of shuffled pairs.",
        "no figure: “a single pass over the dataset caused the reward model to overfit”", "Ouyang 2022, section 3.5",
        "The same pairs, one pass, as rankings or shuffled; about as many updates.",
        "Shuffled pairs have the higher validation loss.", LABELERS,
        ("shuffled pairs, whole rankings", "validation loss, nats per pair"),
        lambda scale: [f"marks_{n}" for n in ("shuffled_pairs", runs.reward_name(scale.overfit))],
        reward_models.one_element,
    ),
    Claim(
        "epochs", "A reward model overfits after about one epoch.",
        "“multiple epochs quickly overfit the model to the training data”",
        "Ouyang 2022, section C.2", "The same rankings for one epoch, and for 2 to 8, each with a schedule of its own.",
        "The validation loss after the most epochs is above that after one.", LABELERS,
        ("epochs", "validation loss, nats per pair"),
        lambda scale: [f"marks_{n}" for n in (runs.reward_name(scale.overfit),
                                              *(f"epochs_{k}" for k in scale.epochs[1:]))],
        reward_models.epochs,
    ),
    Claim(
        "data", "A reward model of few comparisons is near chance, and each doubling brings some points.",
        "under about 2,000 comparisons near chance", "Gao 2022",
        "Reward models of nested sets of rankings, one pass each.",
        "Accuracy rises with the doublings; the smallest is within .05 of chance.", LABELERS,
        ("rankings", "accuracy"), lambda scale: [f"marks_{runs.reward_name(n)}" for n in scale.sizes],
        reward_models.data,
    ),
    Claim(
        "heldout_labelers", "A reward model predicts labelers whom it never met 1 to 4 points worse.",
        "72.4 ± 0.4 % against 69.6 ± 0.9 %", "Ouyang 2022, section 4.1",
        "Five folds by labeler. The model that never met a held-out ranking's labeler scores it, and so do the four "
        "that did.",
        "Accuracy on labelers trained on is higher.", LABELERS, ("trained on, left out", "accuracy"),
        lambda scale: [*(f"marks_fold_{k}" for k in range(scale.folds)), f"marks_{runs.main_reward(scale)}"],
        reward_models.heldout_labelers,
    ),
    Claim(
        "ordering", "People prefer SFT to the prompted base and the base, and PPO, with or without ptx, to SFT.",
        "175B: PPO-ptx wins 73.4 ± 2 % against SFT", "Ouyang 2022, section 4.1, figure 1",
        "Answers of all five to test prompts, judged against SFT's.",
        "Each step wins more; PPO-ptx is within .05 of PPO.", "simulated held-out labelers; gold beside them",
        ("base, prompted, SFT, PPO, PPO-ptx", "win rate against SFT"), lambda _: ["judgments"], preference.ordering,
    ),
    Claim(
        "small_beats_large", "A small aligned model is preferred to a much larger base.",
        "1.3B PPO-ptx is preferred to 175B GPT-3 (no figure stated)", "Ouyang 2022, sections 1 and 4.1",
        "PPO of the shipped base (0.89M parameters, 12M tokens) against a base of 9.24M of the same world, a factor of "
        "10.4, pretrained on 6M tokens; plain, and after worked examples.",
        "PPO wins more than half, though the large base predicts text better than the small one.",
        "simulated held-out labelers; gold beside them",
        ("plainly, worked examples", "win rate of the small PPO"),
        lambda _: ["judgments_large", "judgments_large_prompted", "gauge_large", "gauge_base"],
        preference.small_beats_large,
    ),
    Claim(
        "tax", "PPO pays an alignment tax, and the pretraining mixture takes most of it back.",
        "SQuADv2 F1 of SFT, PPO, PPO-ptx: 57.67, 43.68, 59.85", "Ouyang 2022, section 4.2 and appendix E",
        "Loss of SFT, PPO and PPO-ptx on held-out pretraining text (no benchmarks here).",
        "PPO's loss is above SFT's; the mixture takes back more than half of that.", "nobody: loss on text",
        ("base, SFT, PPO, PPO-ptx", "nats per token"),
        lambda _: _gauges(["base", "sft", "ppo", "ppo_ptx"]), tax.tax,
    ),
    Claim(
        "ptx_not_kl", "A larger KL penalty is no substitute for the pretraining mixture.",
        "even 100 × beta does not repair the regressions, and the reward falls", "Ouyang 2022, appendix E",
        "A sweep of gamma beside one of beta: loss on text at equal score by the reward model.",
        "At PPO-ptx's score plain PPO has more loss; the largest beta has less score.",
        "the reward model, as in the paper, and loss on text", ("score", "loss on text, nats per token"),
        lambda scale: _gauges(["sft", *_betas(scale)[1:], *map(runs.gamma_name, scale.gammas)]), tax.ptx_not_kl,
    ),
    Claim(
        "interior_beta", "The KL coefficient has an interior best: too little overoptimises, too much stands still.",
        "best at .01 to .02; 0 and 2 both poor", "Ouyang 2022, appendix E",
        "PPO without ptx (the paper's has it) over beta; the best is chosen on half of the test prompts and measured "
        "on the others.",
        "Gold at the best is above both ends; the reward model's score falls with beta.", GOLD,
        ("beta", "gained over beta 0"), lambda scale: _gauges(_betas(scale)), overoptimization.interior_beta,
    ),
    Claim(
        "overoptimization", "Optimised far enough, the true reward peaks and falls, later for a better reward model.",
        "gold peaks and falls; larger proxies later", "Gao 2022, figure 1",
        "Best of n and PPO without a KL penalty, by reward models of few and of many rankings (data in place of "
        "parameters); peaks are chosen on half of the prompts.",
        "By the weakest reward model gold falls from its peak; by the strongest the best of the most gains more.", GOLD,
        ("square root of KL from SFT", "gold"),
        lambda scale: ["samples", *_gauges([*_stops(scale, scale.proxies[0]), *_stops(scale, scale.sizes[-1])])],
        overoptimization.overoptimization,
    ),
    Claim(
        "penalty_is_stopping", "A KL penalty acts like early stopping: it does not lift gold at a given KL.",
        "curves overlap", "Gao 2022",
        "PPO over beta beside PPO without a penalty, stopped early: gold at equal KL.",
        "The same within .1 standard deviations of SFT's gold.", GOLD, ("square root of KL from SFT", "gold"),
        lambda scale: _gauges(["sft", *_betas(scale)[1:], *_stops(scale, scale.sizes[-1])]),
        overoptimization.penalty_is_stopping,
    ),
    Claim(
        "kl_spent", "Reinforcement learning spends far more KL than best of n for the same score.",
        "several times", "Gao 2022",
        "PPO's policies beside the best of n, from 2 up, that gains as much over SFT by the main reward model.",
        "The ratio of KLs is above one.", "the reward model", ("KL from SFT, nats", "score gained"),
        lambda scale: ["samples", *_gauges(["sft", *_betas(scale), *_stops(scale, scale.sizes[-1])])],
        overoptimization.kl_spent,
    ),
    Claim(
        "optimal_policy", "KL-regularised objectives have the optimum π_ref · exp(r/β); GRPO as published has another.",
        "derived", "Rafailov 2023, equation 4",
        "Bandits of 8 and 13 completions: KL from the optimum after training.",
        "PPO, RLOO and DPO end within .02 nats of it; GRPO further than .05.", "nobody: enumerated",
        ("PPO, RLOO, DPO, GRPO", "KL from the optimum, nats"), lambda _: ["bandit"], optimum.optimal_policy,
    ),
)  # fmt: skip
BY_NAME = {claim.name: claim for claim in CLAIMS}


def stages_for(names: tuple[str, ...], scale: Scale) -> runs.Stages:
    """The runs of a seed that these claims need, each after those that it reads."""
    claims = [BY_NAME[name] for name in names if BY_NAME[name].left_out(scale) is None]
    return runs.needed(runs.of_a_seed(scale), [run for claim in claims for run in claim.needs(scale)])
