"""Which architectures give the same numbers here as in transformers: writes docs/models.md.

Every causal language model that transformers can build is made small, with random weights, and taken through
log-probabilities, greedy sampling, scores of a ranking, one reward step, one PPO iteration, saving and loading, each
beside transformers' own forward pass of each sequence alone. About fifteen minutes on two cores:

    python docs/support.py
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tutelage.data.records import Request
from tutelage.models.architecture import window
from tutelage.models.forward import completion_logprobs, group_scores, reads_trees
from tutelage.models.loading import load_policy, load_scalar, new_scalar
from tutelage.models.memory import remembers
from tutelage.models.tokens import load_tokenizer
from tutelage.sampling.local import LocalSampler
from tutelage.settings.online import OnlineConfig
from tutelage.settings.reward import RewardConfig
from tutelage.stages import online, reward
from tutelage.stages.pretrain import train_tokenizer

PAGE = Path(__file__).with_name("models.md")
SECONDS = 300  # for one architecture
LARGEST = 20_000_000  # parameters of what counts as small
CLOSE = 1e-3  # of log-probabilities and scores, in fp32
SENTENCES = (
    "The cat sat on the mat and looked at the moon.",
    "Name a colour of the sky: the sky is blue.",
    "User: What is two and two?\nAssistant: Two and two is four.",
)

# Small sizes, by the names that configs have for them.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "decoder_attention_heads",
         "encoder_attention_heads"), 4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "dff", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length"), 128),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "v_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim"), 4),
    **dict.fromkeys(("initializer_range", "init_std"), 0.3),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("mamba_d_state", "state_size", "mamba_dt_rank", "mamba_d_conv", "conv_L_cache"), 4),
    "head_dim": 8, "sliding_window": 64, "window_size": 64, "attention_window_size": 64,
}  # fmt: skip
# What some need besides; a value of None leaves a size as the class has it.
MORE: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"tie_word_embeddings": False},
    "codegen": {"tie_word_embeddings": False},
    "phi3": {"sliding_window": None, "original_max_position_embeddings": 128},
    "gemma2": {"final_logit_softcapping": 5.0},
    "gemma3_text": {"final_logit_softcapping": 5.0},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 8.0},
    "deepseek_v2": {"topk_method": "greedy"},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
              "use_mamba_kernels": False},
    "bert": {"is_decoder": True},
    "nemotron": {"num_key_value_heads": 2},
    **{key: {"head_dim": 8} for key in ("ministral", "hunyuan_v1_dense", "hunyuan_v1_moe")},
    **{key: {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2} for key in ("bamba", "granitemoehybrid")},
    **{key: {"num_hidden_layers": 4} for key in ("qwen3_next", "qwen3_5_text")},  # the fourth has attention
    "gemma4_text": {"vocab_size_per_layer_input": 300},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "zaya": {"num_experts_per_tok": 1},
    "falcon": {"alibi": False},
    "falcon, alibi": {"alibi": True},
}  # fmt: skip
SHORT = (  # what CI looks at: one of each kind of attention, head and memory
    "llama", "qwen2", "gpt2", "gpt_neox", "gpt_neo", "gptj", "opt", "bloom", "falcon, alibi", "mpt", "gemma2", "cohere",
    "granite", "gpt_oss", "jamba", "mamba", "bert",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What was seen of one architecture: what differed (`wrong`), why it cannot be used, why nothing was tried.

    With `policy` and `refused` it is a policy but no reward model.
    """

    name: str
    policy: str = ""
    rankings: str = ""
    refused: str = ""
    untried: str = ""
    wrong: str = ""

    @property
    def verdict(self) -> str:
        if self.wrong:
            return f"WRONG: {self.wrong}"
        if self.untried:
            return f"not tried: {self.untried}"
        if self.refused and self.policy:
            return f"policy only: {self.refused}"
        if self.refused:
            return f"refused: {self.refused}"
        return "by rows" if "rows" in self.policy + self.rankings else "same numbers"


def build(name: str, folder: Path) -> None:
    """Save a small random model of this architecture, with a tokenizer."""
    tokenizer = train_tokenizer(SENTENCES, 300)
    kind = name.partition(",")[0]
    known = vars(AutoConfig.for_model(kind))
    sizes = {key: value for key, value in SIZES.items() if known.get(key) is not None}
    if "kv_lora_rank" in sizes:  # heads of two parts, as many for keys as for queries
        sizes |= {key: value for key, value in (("num_key_value_heads", 4), ("head_dim", 4)) if key in sizes}
    sizes |= MORE.get(name, {})
    ids = {"vocab_size": len(tokenizer), "eos_token_id": 1, "pad_token_id": 0}
    try:
        config = AutoConfig.for_model(kind, **sizes, **ids, bos_token_id=None)
    except Exception:  # some must have a start token
        config = AutoConfig.for_model(kind, **sizes, **ids, bos_token_id=1)
    with torch.device("meta"):
        number = AutoModelForCausalLM.from_config(config).num_parameters()
    if number > LARGEST:
        raise ValueError(f"still has {number:,} parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for key, parameter in model.named_parameters():  # norms and biases are born 1 and 0, where mistakes hide
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1.0 if key.endswith("weight") else 0.0, 0.1)
    own_logprobs(model, range(2, 20))  # what transformers itself cannot run says nothing of us
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def own_logprobs(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """(l - 1,) log-probabilities of the tokens after the first, by the model's own forward pass."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(list(ids))[1:, None])[:, 0]


def own_greedy(model: PreTrainedModel, ids: Sequence[int], new: int) -> list[int]:
    """The likeliest tokens, one at a time, each time reading all."""
    out = list(ids)
    for _ in range(new):
        with torch.no_grad():
            out.append(int(model(input_ids=torch.tensor([out]), use_cache=False).logits[0, -1].argmax()))
    return out[len(ids) :]


def far(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().nan_to_num(float("inf")).max())


def look(name: str, folder: Path) -> Row:
    """Build, try, compare."""
    try:
        build(name, folder / "model")
    except Exception as error:  # of any kind: a class that needs more than these sizes
        return Row(name, untried=f"{type(error).__name__}: {_line(error)}")
    try:
        tokenizer = load_tokenizer(folder / "model")
        policy = load_policy(folder / "model", tokenizer)
    except ValueError as error:
        return Row(name, refused=_named(error, folder))
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(2, len(tokenizer), (12,), generator=generator).tolist()
    group = [prompt + torch.randint(2, len(tokenizer), (n,), generator=generator).tolist() for n in (3, 5, 8)]

    # 1. Log-probabilities and greedy sampling.
    theirs = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    ours = completion_logprobs(policy, group, [1, 1, 1])
    off = max(far(row[: len(ids) - 1], own_logprobs(theirs, ids)) for row, ids in zip(ours, group, strict=True))
    if not off < CLOSE:
        return Row(name, wrong=f"log-probabilities differ by {off:.2g}")
    prompts = [prompt, prompt[:5]]
    samples = LocalSampler(policy).sample([Request(tuple(p), 0, 8, (), 0.0) for p in prompts])
    if [list(s.completion_ids) for s in samples] != [own_greedy(theirs, p, 8) for p in prompts]:
        return Row(name, wrong="greedy sampling differs")
    how = "cache" if remembers(policy) else "rows read anew"

    # 2. Scores of a ranking, against transformers' own reading of each completion.
    try:
        scalar = new_scalar(folder / "model", tokenizer, 0)
    except ValueError as error:
        none = "Unrecognized configuration class" in str(error)
        return Row(name, how, refused="transformers has no classifier of it" if none else _named(error, folder))
    with torch.no_grad():
        expected = torch.stack([scalar(input_ids=torch.tensor([ids]), use_cache=False).logits[0, 0] for ids in group])
    off = far(group_scores(scalar, [group])[0], expected)
    if not off < CLOSE:
        return Row(name, how, wrong=f"scores of a ranking differ by {off:.2g}")
    read = "trees" if reads_trees(scalar) else "rows"
    if read == "trees" and window(scalar):
        read = "trees within the window"

    # 3. A reward step and a PPO iteration, and what they save.
    try:
        train(folder)
        learned = load_policy(folder / "ppo/model", tokenizer)
        saved = AutoModelForCausalLM.from_pretrained(folder / "ppo/model").eval()
        off = far(completion_logprobs(learned, group[:1], [1])[0], own_logprobs(saved, group[0]))
        scorer = load_scalar(folder / "reward/model", tokenizer)
        opened = AutoModelForSequenceClassification.from_pretrained(folder / "reward/model").eval()
        with torch.no_grad():
            theirs_score = opened(input_ids=torch.tensor(group[:1]), use_cache=False).logits[0]
        off = max(off, far(group_scores(scorer, [group])[0][:1], theirs_score))
    except Exception as error:
        return Row(name, how, read, wrong=f"training: {type(error).__name__}: {_line(error)}")
    return Row(name, how, read, wrong=f"saved models differ by {off:.2g}" if not off < CLOSE else "")


def train(folder: Path) -> None:
    """One reward step and one PPO iteration."""
    asked = [[{"role": "user", "content": f"What is the colour of {x}?"}] for x in ("the sky", "the moon")]
    rows = [{"prompt": p, "completions": ["The sky.", "Blue, blue.", "Four"], "ranks": [2, 1, 3]} for p in asked]
    for name, content in (("rankings", rows), ("prompts", [{"prompt": p} for p in asked])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    held_out = {"same": str(folder / "rankings.jsonl")}
    reward.run(
        RewardConfig(
            model=str(folder / "model"), rankings=str(folder / "rankings.jsonl"), valid=held_out,
            optimizer={"learning_rate": 1e-3},
            output=folder / "reward",
        )
    )  # fmt: skip
    online.run(
        OnlineConfig(
            model=str(folder / "model"), reward_model=str(folder / "reward/model"), optimizer={"learning_rate": 1e-3},
            prompts=str(folder / "prompts.jsonl"), total_episodes=4, batch_size=4, mini_batch_size=4,
            sampler={"max_new_tokens": 6}, output=folder / "ppo",
        )
    )  # fmt: skip


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:157] + "..."


def _named(error: BaseException, folder: Path) -> str:
    return _line(error).removeprefix(f"{folder / 'model'}: ")


def _child(name: str, folder: str, pipe: Any) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    pipe.send(look(name, Path(folder)))


def look_apart(name: str) -> Row:
    """`look` in a process of its own, which may crash or hang."""
    ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        child = multiprocessing.get_context("fork").Process(target=_child, args=(name, folder, theirs))
        child.start()
        theirs.close()
        try:
            row = ours.recv() if ours.poll(SECONDS) else Row(name, untried=f"not done within {SECONDS} seconds")
        except EOFError:
            row = Row(name, untried="its process ended")
        child.kill()
        child.join()
    return row


def page(rows: Sequence[Row]) -> str:
    """The page's Markdown."""
    kinds = ("same numbers", "by rows", "policy only", "refused", "not tried")
    counts = {kind: sum(row.verdict.startswith(kind) for row in rows) for kind in kinds}
    lines = [
        "# Architectures",
        "",
        f"Made by `python docs/support.py` with transformers {transformers.__version__} and torch "
        f"{torch.__version__.partition('+')[0]}: every causal language model that transformers can build, small and "
        "with random weights, in fp32 on a processor. Each row went through log-probabilities, greedy sampling, the "
        f"scores of a ranking, one reward step, one PPO iteration, saving and loading; all agree within {CLOSE:g} with "
        "transformers' own forward pass of each sequence alone, or the model is refused when it is loaded.",
        "",
        "- **same numbers**: sampling goes on from a cache, a ranking is one tree whose prompt is read once.",
        "- **by rows**: the same numbers, slower: the cache or the tree of this architecture did not give them when it "
        "was tried, so rows are read whole.",
        "- **policy only**: the same log-probabilities and samples, but no reward model can start from it, so training "
        "was not tried; a reward model of another architecture with the same tokenizer serves.",
        "- **refused**: with the reason.",
        "- **not tried**: this script could not make a small one. A model of your own is compared when you load it.",
        "",
        "Sequences are limited to the position table and to the narrowest attention window.",
        "",
        ", ".join(f"{count} {kind}" for kind, count in counts.items()) + ".",
        "",
        "| architecture | sampling | rankings | verdict |",
        "|---|---|---|---|",
    ]
    for row in rows:
        cells = (row.name, row.policy or "–", row.rankings or "–", re.sub(r"([|<>*_`])", r"\\\1", row.verdict))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page; 1 if some architecture gives other numbers."""
    names = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MORE})
    rows = []
    for name in sys.argv[1:] or names:
        rows.append(look_apart(name))
        print(f"{name}: {rows[-1].verdict}", flush=True)
    if not sys.argv[1:]:
        PAGE.write_text(page(rows))
    return int(any(row.wrong for row in rows))


if __name__ == "__main__":
    sys.exit(main())
