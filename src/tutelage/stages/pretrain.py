"""Pretraining: a small Llama and its tokenizer from plain text, so that the recipe can start from nothing.

The paper starts from GPT-3; this stage makes its stand-in. Documents begin as the tokenizer begins a
text, end with end-of-text, and are cut into rows.

    tutelage pretrain --texts corpus.jsonl --output runs/base
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tutelage.data.datasets import read_texts
from tutelage.models.loading import device, save_model
from tutelage.models.texts import text_loss, text_nll, text_rows
from tutelage.models.tokens import PLAIN_TEMPLATE
from tutelage.runs import dropped, inputs_of, open_run
from tutelage.settings.stages import PretrainConfig
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


def run(config: PretrainConfig) -> None:
    """Train, then write `model/` into the run folder."""
    run = open_run("pretrain", config, inputs_of(config, *config.INPUTS))
    if run is None:
        return
    # 1. Text to rows of tokens.
    loaded = read_texts(config.texts)
    texts, lost = loaded.records, {}
    tokenizer = train_tokenizer(texts, config.vocab_size)
    rows = text_rows(tokenizer, texts, config.sequence_length)
    held_out = None
    if config.valid_texts:
        valid = read_texts(config.valid_texts)
        lost["valid_texts"] = valid.dropped
        held_out = text_rows(tokenizer, valid.records, config.sequence_length)[:VALID_ROWS]
    # 2. A fresh model.
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
    ).to(device())
    # 3. Next-token prediction, a cosine over the whole.
    per_step = max(1, config.batch_tokens // config.sequence_length)
    total = max(1, config.total_tokens // (per_step * config.sequence_length))
    targets = per_step * (config.sequence_length - 1)
    begin(
        run,
        f"{len(texts):,} documents give {len(rows):,} rows of {config.sequence_length} tokens",
        f"{total:,} updates of {per_step} rows: {total * per_step / len(rows):.1f} passes over the text",
        f"a model of {model.num_parameters():,} parameters, {len(tokenizer):,} tokens in its vocabulary",
        trained=[model],
        lost=(unused := dropped(loaded.dropped, **lost)),
    )
    optimizer = adamw(model, config)
    checkpoint = Checkpoint(run, {"model": model}, {"model": optimizer}, config.checkpoint_seconds)
    start = checkpoint.resume()["step"]
    watch = Watch(run, tokenizer)
    model.train()
    for step in run.track(range(start, total)):
        drawn = torch.randint(
            len(rows), (per_step,), generator=torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        )
        watch.reads(step, rows[drawn].tolist())
        loss = 0.0
        for group in rows[drawn].split(max(1, config.micro_batch_tokens // config.sequence_length)):
            part = text_nll(model, group) / targets
            part.backward()
            loss += part.item()
        rate = config.learning_rate * cosine(step, total, config.warmup_steps)
        norm = update(optimizer, model, config.max_grad_norm, rate, watch)
        watch.look(run.log(step, show=("loss__train",), loss__train=loss, grad_norm=norm, learning_rate=rate))
        if checkpoint.due():
            checkpoint.save(step + 1)
    # 4. What it came to.
    results = {"parameters": model.num_parameters(), "tokens": total * per_step * config.sequence_length}
    if held_out is not None:
        results["valid_loss"] = text_loss(model, held_out)
        require_finite_measure(run, "loss on held-out text", results["valid_loss"])
    save_model(model.eval(), tokenizer, run.folder / "model")
    run.finish(dropped=unused, **results)
