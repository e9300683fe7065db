"""The shipped base model is what its provenance says, and small enough to ship."""

from __future__ import annotations

import hashlib
import re

from tutelage.models.tokens import PLAIN_TEMPLATE, load_tokenizer
from tutelage.recipe import BASE


def test_the_shipped_base_is_the_recorded_one() -> None:
    weights = BASE / "model.safetensors"
    recorded = re.search(r"`([0-9a-f]{64})`", (BASE / "PROVENANCE.md").read_text(encoding="utf-8"))
    assert recorded is not None
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == recorded[1]
    assert sum(path.stat().st_size for path in BASE.iterdir()) < 4_000_000


def test_its_prompts_look_like_its_corpus() -> None:
    tokenizer = load_tokenizer(BASE)
    assert tokenizer.chat_template == PLAIN_TEMPLATE
    messages = [{"role": "user", "content": "I am sad."}]
    shown = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert shown == "User: I am sad.\nAssistant:"
