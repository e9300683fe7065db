"""Pretraining: a small Llama and its tokenizer from plain text, so that the recipe can start from nothing.

The paper starts from GPT-3; this stage makes its stand-in. Documents begin as the tokenizer begins a
text, end with end-of-text, and are cut into rows.

    tutelage pretrain --texts corpus.jsonl --output runs/base
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tutelage.data.datasets import read_texts
from tutelage.models.forward import with_forward
from tutelage.models.loading import save_model
from tutelage.models.precision import device
from tutelage.models.texts import draw_rows, text_backward, text_loss, text_rows
from tutelage.models.tokens import PLAIN_TEMPLATE
from tutelage.runs import dropped, inputs_of, open_run
from tutelage.settings.pretrain import PretrainConfig
from tutelage.training.checkpoints import Checkpoint
from tutelage.training.guards import Watch
from tutelage.training.updates import adamw, begin, cosine, require_finite_measure, update

VALID_ROWS = 256


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE (Sennrich 2016) with the plain chat template; any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|pad|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|endoftext|>", chat_template=PLAIN_TEMPLATE
    )


def new_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A fresh Llama of the settings' size."""
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    return with_forward(model.to(device()))


def run(config: PretrainConfig) -> None:
    """Train, then write `model/` into the run folder."""
    opened = open_run("pretrain", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    # 1. Text to rows of tokens.
    loaded, lost = read_texts(config.texts), {}
    tokenizer = train_tokenizer(loaded.records, config.vocab_size)
    rows, held_out = text_rows(tokenizer, loaded.records, config.sequence_length), None
    if config.valid_texts:
        valid = read_texts(config.valid_texts)
        lost["valid_texts"] = valid.dropped
        held_out = text_rows(tokenizer, valid.records, config.sequence_length)[:VALID_ROWS]
    unused = dropped(loaded.dropped, **lost)
    # 2. A fresh model.
    model = new_model(config, tokenizer)
    per_step = max(1, config.batch_tokens // config.sequence_length)
    total = max(1, config.total_tokens // (per_step * config.sequence_length))
    begin(
        opened,
        f"{len(loaded.records):,} documents give {len(rows):,} rows of {config.sequence_length} tokens",
        f"{total:,} updates of {per_step} rows: {total * per_step / len(rows):.1f} passes over the text",
        f"a model of {model.num_parameters():,} parameters, {len(tokenizer):,} tokens in its vocabulary",
        trained=[model],
        lost=unused,
    )
    optimizer = adamw(model, config.optimizer)
    checkpoint = Checkpoint(opened, {"model": model}, {"model": optimizer}, config.checkpoint_seconds)
    start = checkpoint.resume()["step"]
    watch = Watch(opened, tokenizer)
    model.train()
    # 3. Next-token prediction, a cosine over the whole.
    for step in opened.track(range(start, total)):
        drawn = draw_rows(rows, per_step, config.seed, step)
        watch.reads(step, drawn.tolist())
        loss = text_backward(model, drawn, config.micro_batch_tokens)
        rate = config.optimizer.learning_rate * cosine(step, total, config.optimizer.warmup_steps)
        norm = update(optimizer, model, config.optimizer.max_grad_norm, rate, watch)
        metrics = {"loss/train": loss, "grad_norm": norm, "learning_rate": rate}
        watch.look(opened.log(step, metrics, show=("loss/train",)))
        if checkpoint.due():
            checkpoint.save(step + 1)
    # 4. What it came to.
    results = {"parameters": model.num_parameters(), "tokens": total * per_step * config.sequence_length}
    if held_out is not None:
        results["valid_loss"] = text_loss(model, held_out)
        require_finite_measure(opened, "loss on held-out text", results["valid_loss"])
    save_model(model.eval(), tokenizer, opened.folder / "model")
    opened.finish(dropped=unused, **results)
