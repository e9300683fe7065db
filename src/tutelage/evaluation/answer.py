"""Answers of all models to the same held-out prompts, with what can be measured without a judge.

Differs from the paper: the alignment tax is the held-out pretraining loss, next to which benchmarks may stand.

    tutelage answer --models base=B,sft=S,ppo=P --prompts test.jsonl --output runs/answers
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.data.datasets import read_demonstrations, read_prompts, read_texts, write_jsonl
from tutelage.data.records import Completion, Demonstration, Prompt, Request, Sample
from tutelage.evaluation.tax import document_losses
from tutelage.models.forward import completion_logprobs, group_scores
from tutelage.models.loading import context_length, full_precision, load_policy, load_scalar
from tutelage.models.tokens import load_tokenizer, same_reading, same_tokens
from tutelage.objectives.kl import k1
from tutelage.runs import dropped, inputs_of, open_run
from tutelage.sampling.completions import Writer, complete, fits, leaves_room, number_copies, require_fit, scored_ids
from tutelage.settings.evaluation import AnswerConfig
from tutelage.stats.intervals import standard_error


def kl_to(
    reference: PreTrainedModel,
    policy: PreTrainedModel,
    prompts: list[Prompt],
    requests: list[Request],
    samples: list[Sample],
) -> tuple[float, float | None]:
    """(mean, standard error) of the summed log-ratio per completion: an unbiased estimate of KL(policy‖reference).

    One prompt alone has no standard error.
    """
    sequences = [[*r.prompt_ids, *s.completion_ids] for r, s in zip(requests, samples, strict=True)]
    lengths = [len(r.prompt_ids) for r in requests]
    with full_precision():
        ours, theirs = (completion_logprobs(model, sequences, lengths) for model in (policy, reference))
    gap = k1(ours, theirs).sum(1)  # zero on padding, where both are zero
    return float(gap.mean()), standard_error(gap.numpy(), [p.identity for p in prompts])


def require_comparable(
    config: AnswerConfig, tokenizers: Mapping[str, PreTrainedTokenizerBase], conversations: bool
) -> None:
    """Log-probabilities of two models are of the same thing only if both read the same tokens.

    Raises:
        ValueError: if KL from the reference, or losses of texts, are asked for over models whose tokenizers differ; for
            KL over conversations also if their chat templates do.
    """
    reference = config.reference if config.temperature == 1.0 else None  # KL is measured at this temperature only
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


def run(config: AnswerConfig) -> None:
    """Write answers.jsonl: each prompt with the answers by model name.

    Raises:
        ValueError: if no prompt fits, or models cannot be compared in what is asked for.
    """
    run = open_run("answer", config, inputs_of(config, *config.INPUTS))
    if run is None:
        return
    examples: tuple[Demonstration, ...] = ()
    lost_examples: dict[str, int] = {}
    if config.examples:
        read_examples = read_demonstrations(config.examples)
        examples, lost_examples = tuple(read_examples.records[: config.shots]), read_examples.dropped
    loaded = read_prompts(config.prompts)
    prompts = loaded.records
    tokenizers = {name: load_tokenizer(folder) for name, folder in config.models.items()}
    require_comparable(config, tokenizers, any(not isinstance(p.text, str) for p in prompts))
    writers: dict[str, Writer] = {}
    for name, folder in config.models.items():
        writers[name] = Writer(name, load_policy(folder, tokenizers[name]), tokenizers[name])
    for name, model in config.prompted.items():
        writers[name] = Writer(name, writers[model].policy, writers[model].tokenizer, examples)
    texts = read_texts(config.texts) if config.texts else None
    scorer = None
    if config.reward_model:
        reward_tokenizer = load_tokenizer(config.reward_model)
        scorer = load_scalar(config.reward_model, reward_tokenizer)
    fitting = [p for p in prompts if all(fits(w, p, 2**31, config.max_new_tokens) for w in writers.values())]
    too_long = {"too long": len(prompts) - len(fitting)}
    if scorer is not None and fitting:
        context, before = context_length(scorer), fitting
        rooms = [leaves_room(w, reward_tokenizer, fitting, config.max_new_tokens, context) for w in writers.values()]
        fitting = [p for p, *room in zip(fitting, *rooms, strict=True) if all(room)]
        too_long["too long for the reward model"] = len(before) - len(fitting)
    if not fitting:
        contexts = [context_length(m) for m in (*(w.policy for w in writers.values()), *([scorer] if scorer else []))]
        raise ValueError(
            f"{config.prompts}: none of {len(prompts)} prompts leaves room for {config.max_new_tokens} new tokens in "
            f"every model's context, of which the shortest is {min(contexts)} tokens; lower max_new_tokens"
        )
    answers: dict[str, list[Completion]] = {}
    scores: dict[str, float] = {}
    kl: dict[str, float] = {}
    kl_error: dict[str, float] = {}
    jobs = [(name, name, config.temperature, 1) for name in writers]
    jobs += [(f"{name}_greedy", name, 0.0, 1) for name in config.greedy]
    if config.best_of:
        jobs.append((config.labels[-1], config.best_of, config.temperature, config.best_of_n))
    singles = 1 + max(number_copies(fitting))
    unused = dropped({**loaded.dropped, **too_long}, examples=lost_examples, texts=texts.dropped if texts else {})
    plan = f"{len(fitting):,} prompts, {len(jobs)} rows of answers: {', '.join(label for label, *_ in jobs)}"
    run.begin(plan, lost=unused)

    def work(name: str, temperature: float, n: int) -> dict[str, Any]:
        """One row of answers, the best of n each, with what is measured on them."""
        writer = writers[name]
        asked = [p for p in fitting for _ in range(n)]
        # The best of n draws from the copies after those that are a model's own single samples.
        copies = [copy + (0 if n == 1 else singles) for copy in number_copies(asked)]
        completions, requests, samples = complete(
            writer, asked, config.seed, copies=copies, temperature=temperature, max_new_tokens=config.max_new_tokens
        )
        measures: dict[str, Any] = {}
        if scorer is not None:
            ids = scored_ids(writer, reward_tokenizer, asked, completions, requests, samples)
            require_fit(ids, context_length(scorer), str(config.reward_model))
            with full_precision():
                read = torch.stack(group_scores(scorer, [ids[i : i + n] for i in range(0, len(ids), n)]))
            best = read.argmax(1)
            measures["score"] = float(read.max(1).values.mean())
            completions = [completions[i * n + k] for i, k in enumerate(best.tolist())]
        at_reference = name == config.reference or writer.examples or n > 1
        if config.reference and not at_reference and temperature == 1.0:
            measures["kl"] = kl_to(writers[config.reference].policy, writer.policy, asked, requests, samples)
        return {"completions": [c.model_dump(mode="json") for c in completions], **measures}

    run.forget_after(-1)  # what is kept is logged again
    for index in run.track(range(len(jobs))):
        label, name, temperature, n = jobs[index]
        own = run.once(f"answers-{index}", partial(work, name, temperature, n))
        answers[label] = [Completion.model_validate(row) for row in own["completions"]]
        if "score" in own:
            scores[label] = own["score"]
        if "kl" in own:
            kl[label], error = own["kl"]
            if error is not None:
                kl_error[label] = error
        run.log(index, answers=float(len(fitting)))
    rows = []
    for i, prompt in enumerate(fitting):
        row = prompt.model_dump(mode="json", exclude_none=True)
        row["prompt"] = row.pop("text")
        rows.append(row | {"answers": {name: completions[i].text for name, completions in answers.items()}})
    write_jsonl(run.folder / "answers.jsonl", rows)
    losses = {}
    if texts:
        losses = {
            n: run.once(f"losses-{i}", partial(document_losses, writers[n].policy, writers[n].tokenizer, texts.records))
            for i, n in enumerate(config.models)
        }
        write_jsonl(
            run.folder / "losses.jsonl",
            [{n: of[i] for n, of in losses.items()} for i in range(len(texts.records))],
        )
    run.finish(
        prompts=len(fitting), kl=kl, kl_standard_error=kl_error,
        dropped=unused,
        pretraining_loss={n: sum(nats for nats, _ in of) / sum(k for _, k in of) for n, of in losses.items()},
        scores=scores,
        words={n: sum(len(c.text.split()) for c in cs) / len(cs) for n, cs in answers.items()},
    )  # fmt: skip
