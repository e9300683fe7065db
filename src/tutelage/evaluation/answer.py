"""Answers of all models to the same held-out prompts, with what can be measured without a judge.

Differs from the paper: the alignment tax is the held-out pretraining loss, next to which benchmarks may stand.

    tutelage answer --models base=B,sft=S,ppo=P --prompts test.jsonl --output runs/answers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.data.answers import instruction_of, write_model_outputs
from tutelage.data.datasets import read_demonstrations, read_prompts, read_texts, write_jsonl
from tutelage.data.records import Completion, Prompt
from tutelage.evaluation.scoring import leaves_room, readings
from tutelage.evaluation.tax import document_losses
from tutelage.models.architecture import context_length
from tutelage.models.forward import group_scores
from tutelage.models.loading import load_policy
from tutelage.models.precision import full_precision
from tutelage.models.tokens import load_tokenizer, same_reading, same_tokens
from tutelage.rewards.reward_model import RewardModel
from tutelage.runs import dropped, inputs_of, open_run
from tutelage.sampling.completions import Answer, Writer, complete, fits, log_ratios, number_copies
from tutelage.settings.evaluation import AnswerConfig
from tutelage.stats.intervals import standard_error


def kl_to(reference: PreTrainedModel, policy: PreTrainedModel, answers: Sequence[Answer]) -> tuple[float, float | None]:
    """(mean, standard error) of the summed log-ratio per completion: an unbiased estimate of KL(policy‖reference).

    One prompt alone has no standard error.
    """
    gap = log_ratios(reference, policy, answers)
    return float(gap.mean()), standard_error(gap.numpy(), [a.prompt.identity for a in answers])


def require_comparable(
    config: AnswerConfig, tokenizers: Mapping[str, PreTrainedTokenizerBase], conversations: bool
) -> None:
    """Log-probabilities of two models are of the same thing only if both read the same tokens.

    Raises:
        ValueError: if KL from the reference, or losses of texts, are asked for over models whose tokenizers differ; for
            KL over conversations also if their chat templates do.
    """
    measures_kl = config.sampler.temperature == 1.0  # and at no other
    reference = config.reference if measures_kl else None
    anchor = reference or next(iter(tokenizers))
    for name, tokenizer in tokenizers.items():
        if (reference or config.texts) and not same_tokens(tokenizers[anchor], tokenizer):
            measure = "reference" if reference else "texts"
            says = "KL between them is not defined" if reference else "their losses per token cannot be compared"
            raise ValueError(
                f"{measure}: the tokenizers of {name!r} and {anchor!r} differ ({len(tokenizer)} and "
                f"{len(tokenizers[anchor])} tokens), so {says}; leave out {measure}, or one of the two models"
            )
        if reference and conversations and not same_reading(tokenizers[anchor], tokenizer):
            raise ValueError(
                f"reference: the chat templates of {name!r} and {anchor!r} differ, so KL between them is not defined; "
                "leave out reference, or one of the two models"
            )


@dataclass(frozen=True)
class Row:
    """One row of answers: its name, who writes it, at which temperature, and the best of how many it takes."""

    label: str
    writer: str
    temperature: float
    n: int = 1


def rows_of(config: AnswerConfig) -> list[Row]:
    """The rows of answers that the settings ask for."""
    names, temperature = [*config.models, *config.prompted], config.sampler.temperature
    rows = [Row(name, name, temperature) for name in names]
    rows += [Row(f"{name}_greedy", name, 0.0) for name in config.greedy]
    if config.best_of:
        rows.append(Row(config.labels[-1], config.best_of, temperature, config.best_of_n))
    return rows


def open_writers(config: AnswerConfig, prompts: Sequence[Prompt]) -> tuple[dict[str, Writer], dict[str, int]]:
    """Every model by name, those asked after worked examples too, and what was dropped of the examples.

    Raises:
        ValueError: if models cannot be compared in what is asked for.
    """
    loaded = read_demonstrations(config.examples) if config.examples else None
    tokenizers = {name: load_tokenizer(folder) for name, folder in config.models.items()}
    require_comparable(config, tokenizers, any(not isinstance(p.text, str) for p in prompts))
    writers = {n: Writer(n, load_policy(folder, tokenizers[n]), tokenizers[n]) for n, folder in config.models.items()}
    if loaded is None:
        return writers, {}
    examples = tuple(loaded.records[: config.shots])
    for name, model in config.prompted.items():
        writers[name] = replace(writers[model], name=name, examples=examples)
    return writers, loaded.dropped


def fitting(
    prompts: Sequence[Prompt], writers: Mapping[str, Writer], reward: RewardModel | None, config: AnswerConfig
) -> tuple[list[Prompt], dict[str, int]]:
    """The prompts that leave room for an answer in every model's context, and how many others there are.

    Raises:
        ValueError: if no prompt does.
    """
    new = config.sampler.max_new_tokens
    kept = [p for p in prompts if all(fits(w, p, new) for w in writers.values())]
    lost = {"too long": len(prompts) - len(kept)}
    if reward is not None and kept:
        before, rooms = len(kept), [leaves_room(reward, w, kept, new) for w in writers.values()]
        kept = [p for p, *room in zip(kept, *rooms, strict=True) if all(room)]
        lost["too long for the reward model"] = before - len(kept)
    if not kept:
        contexts = [context_length(w.policy) for w in writers.values()] + ([reward.context] if reward else [])
        raise ValueError(
            f"{config.prompts}: none of {len(prompts)} prompts leaves room for {new} new tokens in every model's "
            f"context, of which the shortest is {min(contexts)} tokens; lower sampler.max_new_tokens"
        )
    return kept, lost


def write(
    row: Row, writers: Mapping[str, Writer], reward: RewardModel | None, prompts: Sequence[Prompt], config: AnswerConfig
) -> dict[str, Any]:
    """One row of answers, the best of n each, with what is measured on them."""
    writer, n = writers[row.writer], row.n
    asked = [p for p in prompts for _ in range(n)]
    # The best of n draws from the copies after those that are a model's own single samples.
    after = 0 if n == 1 else 1 + max(number_copies(prompts))
    copies = [copy + after for copy in number_copies(asked)]
    sampling = config.sampler.model_copy(update={"temperature": row.temperature})
    answers = complete(writer, asked, config.seed, sampling, copies)
    measures: dict[str, Any] = {}
    kept = answers
    if reward is not None:
        ids = readings(reward, writer, answers)
        with full_precision():
            scores = torch.stack(group_scores(reward.model, [ids[i : i + n] for i in range(0, len(ids), n)]))
        measures["score"] = float(scores.max(1).values.mean())
        kept = [answers[i * n + k] for i, k in enumerate(scores.argmax(1).tolist())]
    sampled_alone = row.temperature == 1.0 and n == 1 and not writer.examples
    if config.reference and sampled_alone and row.writer != config.reference:
        measures["kl"] = kl_to(writers[config.reference].policy, writer.policy, answers)
    return {"completions": [a.completion.model_dump(mode="json") for a in kept], **measures}


def write_answers(
    folder: Path, prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Completion]], model_outputs: bool
) -> None:
    """answers.jsonl, and if `model_outputs` each model's answers as AlpacaEval has them."""
    lines = []
    for i, prompt in enumerate(prompts):
        line = prompt.model_dump(mode="json", exclude_none=True)
        line["prompt"] = line.pop("text")
        lines.append(line | {"answers": {label: completions[i].text for label, completions in answers.items()}})
    write_jsonl(folder / "answers.jsonl", lines)
    for label, completions in answers.items() if model_outputs else ():
        pairs = zip(prompts, (completion.text for completion in completions), strict=True)
        write_model_outputs(folder / f"model_outputs_{label}.json", label, pairs)


def run(config: AnswerConfig) -> None:
    """Write answers.jsonl: each prompt with the answers by model name.

    Raises:
        ValueError: if no prompt fits, or models cannot be compared in what is asked for.
    """
    opened = open_run("answer", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    loaded = read_prompts(config.prompts)
    texts = read_texts(config.texts) if config.texts else None
    writers, lost_examples = open_writers(config, loaded.records)
    reward = RewardModel(config.reward_model) if config.reward_model else None
    prompts, too_long = fitting(loaded.records, writers, reward, config)
    unused = dropped({**loaded.dropped, **too_long}, examples=lost_examples, texts=texts.dropped if texts else {})
    for prompt in prompts if config.model_outputs else ():
        instruction_of(prompt)  # what cannot be written is met now
    rows = rows_of(config)
    labels = ", ".join(row.label for row in rows)
    opened.begin(f"{len(prompts):,} prompts, {len(rows)} rows of answers: {labels}", lost=unused)
    answers: dict[str, list[Completion]] = {}
    scores: dict[str, float] = {}
    kl: dict[str, tuple[float, float | None]] = {}
    opened.forget_after(-1)  # what is kept is logged again
    for index in opened.track(range(len(rows))):
        row = rows[index]
        own = opened.once(f"answers-{index}", partial(write, row, writers, reward, prompts, config))
        answers[row.label] = [Completion.model_validate(each) for each in own["completions"]]
        if "score" in own:
            scores[row.label] = own["score"]
        if "kl" in own:
            kl[row.label] = own["kl"]
        opened.log(index, {"answers": float(len(prompts))})
    write_answers(opened.folder, prompts, answers, config.model_outputs)
    losses = {}
    if texts:
        for i, name in enumerate(config.models):
            w = writers[name]
            losses[name] = opened.once(f"losses-{i}", partial(document_losses, w.policy, w.tokenizer, texts.records))
        by_document = [{name: of[i] for name, of in losses.items()} for i in range(len(texts.records))]
        write_jsonl(opened.folder / "losses.jsonl", by_document)
    opened.finish(
        prompts=len(prompts), kl={name: mean for name, (mean, _) in kl.items()},
        kl_standard_error={name: error for name, (_, error) in kl.items() if error is not None},
        dropped=unused,
        pretraining_loss={n: sum(nats for nats, _ in of) / sum(k for _, k in of) for n, of in losses.items()},
        scores=scores,
        words={n: sum(len(c.text.split()) for c in cs) / len(cs) for n, cs in answers.items()},
    )  # fmt: skip
