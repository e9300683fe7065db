"""A policy measured prompt by prompt and document by document, so that two policies can be compared in pairs."""

from __future__ import annotations

from typing import Any

from tutelage.data.datasets import read_prompts, read_texts, write_jsonl
from tutelage.data.records import Prompt
from tutelage.lab.world import gold
from tutelage.models.architecture import context_length
from tutelage.models.forward import completion_logprobs
from tutelage.models.loading import load_policy
from tutelage.models.precision import full_precision
from tutelage.models.tokens import encode_documents, load_tokenizer
from tutelage.objectives.kl import k1
from tutelage.rewards.reward import Answers
from tutelage.rewards.reward_model import RewardModel
from tutelage.runs import inputs_of, open_run
from tutelage.sampling.completions import Answer, Writer, complete
from tutelage.settings.claims import GaugeConfig


def as_answers(answers: list[Answer]) -> Answers:
    """What a reward reads of them."""
    ended = [a.completion.finish != "length" for a in answers]
    texts = [a.completion.text for a in answers]
    return Answers([a.prompt for a in answers], texts, ended, [a.ids for a in answers])


def answer_rows(config: GaugeConfig, writer: Writer, prompts: list[Prompt]) -> list[dict[str, Any]]:
    """Of each prompt the answer's gold score, its score, and the log-ratio to the reference, in nats."""
    answers = complete(writer, prompts, config.seed, config.sampler)
    rows: list[dict[str, Any]] = [
        {"prompt": p.id, "gold": gold.value(gold.parts(p, a.completion.text))}
        for p, a in zip(prompts, answers, strict=True)
    ]
    with full_precision():
        if config.reward_model is not None:
            scores = RewardModel(config.reward_model).score_answers(as_answers(answers), writer.tokenizer)
            rows = [row | {"score": score} for row, score in zip(rows, scores, strict=True)]
        if config.reference is not None:
            sequences, lengths = [a.ids for a in answers], [len(a.prompt_ids) for a in answers]
            reference = load_policy(config.reference, writer.tokenizer)
            ours, theirs = (completion_logprobs(m, sequences, lengths) for m in (writer.policy, reference))
            rows = [row | {"kl": gap} for row, gap in zip(rows, k1(ours, theirs).sum(1).tolist(), strict=True)]
    return rows


def document_rows(writer: Writer, texts: list[str]) -> list[dict[str, Any]]:
    """Of each document, cut at the model's context, the sum of next-token losses in nats, and over how many tokens."""
    documents = [ids[: context_length(writer.policy)] for ids in encode_documents(writer.tokenizer, texts)]
    with full_precision():
        logprobs = completion_logprobs(writer.policy, documents, [1] * len(documents))
    return [
        {"document": i, "nats": -float(row.sum()), "tokens": len(ids) - 1}
        for i, (row, ids) in enumerate(zip(logprobs, documents, strict=True))
    ]


def run(config: GaugeConfig) -> None:
    """Write answers.jsonl, a row for each prompt, and documents.jsonl, one for each document; means into done.json."""
    opened = open_run("gauge", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    tokenizer = load_tokenizer(config.policy)
    writer = Writer("policy", load_policy(config.policy, tokenizer), tokenizer)
    prompts = list(read_prompts(config.prompts).records) if config.prompts else []
    texts = list(read_texts(config.texts).records) if config.texts else []
    opened.begin(f"{len(prompts):,} prompts, {len(texts):,} documents")
    answers = answer_rows(config, writer, prompts) if prompts else []
    documents = document_rows(writer, texts) if texts else []
    write_jsonl(opened.folder / "answers.jsonl", answers)
    write_jsonl(opened.folder / "documents.jsonl", documents)
    keys = [key for key in ("gold", "score", "kl") if answers and key in answers[0]]
    means: dict[str, float] = {key: sum(row[key] for row in answers) / len(answers) for key in keys}
    if documents:
        means["loss"] = sum(d["nats"] for d in documents) / sum(d["tokens"] for d in documents)
    opened.finish(prompts=len(prompts), documents=len(documents), **means)
