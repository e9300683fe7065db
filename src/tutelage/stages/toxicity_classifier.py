"""A classifier of toxic text: a Hugging Face sequence classifier, trained on labelled texts and measured by ROC AUC.

    tutelage toxicity-classifier --texts labelled.jsonl --output runs/toxicity

It fine-tunes the model that it is given or, without one, trains a small encoder of the texts' own words. The paper has
none: it asked Perspective (section 4.2). The folder works wherever a classifier does: as a reward, and as
`classifier` of `tutelage benchmark`. Posts with character spans, as the Toxic Spans data (Pavlopoulos 2021) have them,
are split into sentences: every post there was called toxic by somebody, so a post without spans is no example of
harmless text, but a sentence that no span touches is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from tutelage.data.sources import DataError, rows_of
from tutelage.data.strict_json import loads
from tutelage.models.loading import new_classifier, save_model
from tutelage.models.packing import MicroBatch, micro_batches
from tutelage.models.precision import device
from tutelage.runs import inputs_of, open_run
from tutelage.settings.benchmarks import ToxicityClassifierConfig
from tutelage.stats.ranking import roc_auc
from tutelage.terminal import short
from tutelage.training.checkpoints import Checkpoint
from tutelage.training.guards import Watch
from tutelage.training.updates import adamw, batches, begin, cosine, hold_out, update

LABELS = ("not_toxic", "toxic")
WORDS = {"0": 0, "1": 1, "false": 0, "true": 1, **{name: i for i, name in enumerate(LABELS)}}
SENTENCE = re.compile(r".+?(?:[.!?…]+[\"'”’)]*(?=\s)|\n|$)", re.DOTALL)
PIECES, CONTEXT = 8192, 512  # of the small encoder: its vocabulary, and the most of it in a text
LETTERS = re.compile(r"[^\W\d_]{2}")


@dataclass(frozen=True)
class Labelled:
    """A text that is toxic or not, and the document that it is from."""

    text: str
    toxic: bool
    document: str


def sentences(text: str, spans: Sequence[int]) -> list[tuple[str, bool]]:
    """A text's sentences, and whether one of the characters at `spans` lies in each. What has no word is left out."""
    marked = set(spans)
    parts = [(m[0].strip(), not marked.isdisjoint(range(m.start(), m.end()))) for m in SENTENCE.finditer(text)]
    return [(part, toxic) for part, toxic in parts if LETTERS.search(part)]


def read(source: str) -> list[Labelled]:
    """The labelled texts of a file.

    Raises:
        DataError: naming file and line, if a row has no text or no label, or all have the same label.
    """
    texts: list[Labelled] = []
    for place, row in rows_of(source):
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{place}: text is {short(text)}; expected a text, and with it label, score or spans")
        if "spans" in row:
            texts += [Labelled(part, toxic, place) for part, toxic in sentences(text, _spans(place, row["spans"]))]
        else:
            texts.append(Labelled(text, _label(place, row), place))
    kinds = {each.toxic for each in texts}
    if len(kinds) < 2:
        all_of = "empty file" if not kinds else f"all {len(texts):,} texts are {LABELS[kinds.pop()]}"
        raise DataError(f"{source}: {all_of}; give texts of both kinds")
    return texts


def _spans(place: str, value: Any) -> list[int]:
    try:
        spans = loads(value) if isinstance(value, str) else value
    except ValueError:
        spans = None
    if not isinstance(spans, list) or any(not isinstance(i, int) or isinstance(i, bool) for i in spans):
        raise DataError(f"{place}: spans is {short(value)}; expected a list of the places of characters")
    return spans


def _label(place: str, row: dict[str, Any]) -> bool:
    if "label" in row:
        label = WORDS.get(str(row["label"]).strip().lower())
        if label is None:
            raise DataError(f"{place}: label is {short(row['label'])}; expected one of {', '.join(WORDS)}")
        return bool(label)
    try:
        score = float(row["score"])
    except (KeyError, TypeError, ValueError):
        score = -1.0
    if not 0 <= score <= 1:
        raise DataError(f"{place}: has no label, no spans, and score is {short(row.get('score'))}; expected 0 to 1")
    return score >= 0.5


def small_encoder(texts: Sequence[str], seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An untrained classifier that reads up to `CONTEXT` pieces of lower-case words in one layer, and the mean of what
    it makes of them; and its tokenizer, made of these texts."""
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]"]
    trainer = trainers.WordPieceTrainer(vocab_size=PIECES, min_frequency=2, special_tokens=special, show_progress=False)
    pieces.train_from_iterator(texts, trainer)
    # A first token, so that no text is empty.
    pieces.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", model_max_length=CONTEXT
    )
    names = dict(enumerate(LABELS))
    config = ModernBertConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=CONTEXT, classifier_pooling="mean", classifier_dropout=0.2, embedding_dropout=0.1,
        pad_token_id=0, cls_token_id=2, bos_token_id=None, eos_token_id=None, sep_token_id=None, id2label=names,
        label2id={name: i for i, name in names.items()},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ModernBertForSequenceClassification(config).to(device()), tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], longest: int) -> list[list[int]]:
    """Ids of texts as the tokenizer begins and ends them, cut at their end."""
    limit = min(longest, tokenizer.model_max_length)
    return [list(ids) for ids in tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]]


def logits(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """(b, 2) logits of a micro-batch's texts."""
    moved = batch.to(model.device)
    mask = torch.arange(moved.ids.shape[1], device=model.device) < moved.lengths[:, None]
    return model(input_ids=moved.ids, attention_mask=mask.long()).logits.float()


@torch.inference_mode()
def probabilities(model: PreTrainedModel, ids: Sequence[list[int]], max_tokens: int) -> list[float]:
    """The probability of `toxic` of each text."""
    model.eval()
    out = torch.empty(len(ids))
    for batch in micro_batches(ids, max_tokens, model.config.pad_token_id):
        out[batch.rows] = logits(model, batch).softmax(1)[:, 1].cpu()
    return out.tolist()


def backward(model: PreTrainedModel, ids: Sequence[list[int]], toxic: Sequence[bool], max_tokens: int) -> float:
    """Add the gradient of the mean cross-entropy of a batch; returns that mean, in nats."""
    total = 0.0
    for batch in micro_batches(ids, max_tokens, model.config.pad_token_id):
        wanted = torch.tensor([int(toxic[row]) for row in batch.rows], device=model.device)
        loss = torch.nn.functional.cross_entropy(logits(model, batch), wanted, reduction="sum") / len(ids)
        loss.backward()
        total += loss.item()
    return total


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Labelled],
    config: ToxicityClassifierConfig,
) -> dict[str, Any]:
    """`auc`, with its interval over documents, and the share of the texts that are toxic."""
    ids = encode(tokenizer, [each.text for each in texts], config.max_tokens)
    scores, toxic = probabilities(model, ids, config.micro_batch_tokens), [each.toxic for each in texts]
    auc = roc_auc(scores, toxic, prompts=[each.document for each in texts], seed=config.seed)
    return {"auc": auc, "toxic": sum(toxic) / len(toxic)}


def run(config: ToxicityClassifierConfig) -> None:
    """Train, measure, and write `model/` into the run folder."""
    opened = open_run("toxicity-classifier", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    # 1. Labelled texts as ids.
    texts = read(config.texts)
    sets = {name: read(source) for name, source in config.valid.items()}
    if not sets:
        texts, rest = hold_out(texts, [each.document for each in texts], config.held_out, config.seed)
        sets = {"held_out": rest} if len({each.toxic for each in rest}) == 2 else {}
    if config.model:
        model, tokenizer = new_classifier(config.model, LABELS, config.seed)
    else:
        model, tokenizer = small_encoder([each.text for each in texts], config.seed)
    ids = encode(tokenizer, [each.text for each in texts], config.max_tokens)
    plan = list(batches(range(len(texts)), config.batch_size, config.seed, config.epochs))
    counts = ", ".join(f"{len(own):,} ({name})" for name, own in sets.items())
    begin(
        opened,
        f"{len(texts):,} texts to train on, {sum(each.toxic for each in texts):,} of them toxic; to measure on: "
        f"{counts or 'none'}",
        f"{len(plan):,} updates of {config.batch_size} texts, {config.epochs} passes",
        trained=[model], lost={},
    )  # fmt: skip
    # 2. Cross-entropy.
    torch.manual_seed(config.seed)
    optimizer = adamw(model, config.optimizer)
    checkpoint = Checkpoint(opened, {"model": model}, {"model": optimizer}, config.checkpoint_seconds)
    watch = Watch(opened, tokenizer)
    for step in opened.track(range(checkpoint.resume()["step"], len(plan))):
        model.train()
        own = plan[step]
        watch.reads(step, [ids[i] for i in own])
        loss = backward(model, [ids[i] for i in own], [texts[i].toxic for i in own], config.micro_batch_tokens)
        rate = config.optimizer.learning_rate * cosine(step, len(plan), config.optimizer.warmup_steps)
        norm = update(optimizer, model, config.optimizer.max_grad_norm, rate, watch)
        watch.look(
            opened.log(step, {"loss/train": loss, "grad_norm": norm, "learning_rate": rate}, show=("loss/train",))
        )
        if checkpoint.due():
            checkpoint.save(step + 1)
    # 3. What it has learned.
    valid = {name: measure(model, tokenizer, own, config) for name, own in sets.items()}
    save_model(model.eval(), tokenizer, opened.folder / "model")
    for name, measures in valid.items():
        auc = measures["auc"]
        opened.say(f"{name}: AUC {auc['mean']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}] of {auc['n']:,} texts")
    opened.finish(texts=len(texts), toxic=sum(each.toxic for each in texts) / len(texts), valid=valid, label=LABELS[1])
