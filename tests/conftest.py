"""Small real things for all tests: one thread, a tokenizer, tiny random models of several shapes, stories260k."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test may reach the network

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
)

from tutelage.models.cpu import attention
from tutelage.models.forward import with_forward
from tutelage.models.loading import load_policy, save_model
from tutelage.models.tokens import load_tokenizer
from tutelage.stages.pretrain import train_tokenizer

STORIES = Path(__file__).parents[1].parent / "shared" / "models" / "stories260k"
SENTENCES = [
    "The cat sat on the mat and looked at the moon.",
    "Name a colour of the sky: the sky is blue.",
    "User: What is two and two?\nAssistant: Two and two is four.",
    "A dog ran over the hill; the hill was green and the dog was glad.",
]
KINDS = ("llama", "qwen2", "qwen3", "gpt2", "gpt_neox")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def bounded() -> Iterator[None]:
    """Memory ends 2 GiB from here, so that what would take it all raises MemoryError instead."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def tiny_config(kind: str, vocabulary: int, context: int = 128) -> PreTrainedConfig:
    """Two layers, 32 channels, and weights wide enough that the next token is not a near-tie."""
    # A classification model takes over `initializer_range`, which is why each config names it.
    common = {"vocab_size": vocabulary, "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": 1}
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    if kind == "gpt2":
        return GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=context, **common)
    grouped = {} if kind == "gpt_neox" else {"num_key_value_heads": 2}
    head = {"head_dim": 8} if kind == "qwen3" else {}
    kinds = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "gpt_neox": GPTNeoXConfig}
    return kinds[kind](max_position_embeddings=context, **shape, **grouped, **head, **common)


def tiny_model(kind: str, vocabulary: int, context: int = 128, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, vocabulary, context)).eval()
    for name, parameter in model.named_parameters():  # biases and norms are born 0 and 1, where mistakes hide
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.1)
    if kind == "gpt2":  # or a tied embedding repeats its own token for ever
        torch.nn.init.normal_(model.transformer.wpe.weight)
    model.config.pad_token_id = 0
    model.set_attn_implementation(attention.NAME)
    return with_forward(model)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE trained on a few sentences: <|pad|> is 0, <|endoftext|> is 1."""
    return train_tokenizer(SENTENCES, 320)


@pytest.fixture(scope="session")
def tiny(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], PreTrainedModel]:
    """A maker of tiny policies with the tokenizer's vocabulary."""
    return lambda kind: tiny_model(kind, len(tokenizer))


@pytest.fixture(scope="session")
def folders(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A maker of policy folders, each made once: read, never write into them."""
    root = tmp_path_factory.mktemp("models")

    def folder(kind: str) -> Path:
        if not (root / kind).exists():
            save_model(tiny_model(kind, len(tokenizer)), tokenizer, root / kind)
        return root / kind

    return folder


@pytest.fixture(scope="session")
def stories() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A small real model that writes children's stories."""
    if not STORIES.is_dir():
        pytest.skip(f"{STORIES} is absent")
    tokenizer = load_tokenizer(STORIES)
    return load_policy(STORIES, tokenizer), tokenizer
