"""Text for people's eyes: what files, models and labelers wrote is shown, but neither obeyed nor told on.

A terminal obeys control characters: a prompt with an escape sequence in it could set the title, fill the clipboard or
hide the line above. And a message that quotes a database's address would quote its password. Whatever is printed goes
through `printable` or, where it is a message of ours, through `message`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from typing import Any

# Control characters but tab and line break, line separators, marks that turn the direction of text, half characters.
UNSAFE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# What stands before a secret is kept, the secret is not.
SECRETS = re.compile(
    r"(?P<kept>\w://[^\s/:@]*:)\S+(?=@)"  # the password of scheme://user:password@host
    r"|(?P<scheme>https?://)[^\s/:@]+(?=@)"  # a token in its place
    r"|(?P<named>(?:password|passwd|token|secret|api_?key)=)[^\s&'\"]+"  # ?password=… and libpq's password=…
    r"|(?P<bearer>bearer )[^\s'\"]+"
    # Tokens that say what they are: Hugging Face's, OpenAI's and Anthropic's, GitHub's, GitLab's, AWS's. Length and
    # case count, so that a file such as sk-experiment-2024-06-01.jsonl keeps its name.
    r"|(?-i:\b(?:hf_[A-Za-z0-9]{30,}|sk-[\w-]{32,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,}|glpat-[\w-]{20,}"
    r"|AKIA[A-Z0-9]{16}\b))",
    re.IGNORECASE,
)
HOLDS_SECRET = re.compile(r"(TOKEN|PASSWORD|SECRET|_KEY)$")  # a name in the environment


def printable(text: str) -> str:
    """The text with everything that a terminal would obey written as Python writes it, as `\\x1b`."""
    return UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text.replace("\r\n", "\n"))


def masked(text: str) -> str:
    """The text with `***` for passwords, tokens and keys: those in addresses and those in the environment."""
    for name, value in os.environ.items():
        if HOLDS_SECRET.search(name) and len(value) >= 8:
            text = text.replace(value, "***")
    return SECRETS.sub(lambda found: next(filter(None, found.groups()), "") + "***", text)


def message(content: object) -> str:
    """An error or a line of progress as it may be printed."""
    return printable(masked(str(content)))


def tell(content: object) -> None:
    """A line for whoever watches: on the error stream, as results have the other, and at once."""
    print(message(content), file=sys.stderr, flush=True)


def reason(error: BaseException | str) -> str:
    """What a library's error says, in one line; its kind if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def plain(name: object) -> str:
    """A name out of a file as an error shows it: in one line, and not too long."""
    return _cut(repr(str(name)[:100])[1:-1])


def listed(names: Iterable[object]) -> str:
    """Names as an error lists them."""
    found = [plain(name) for name in names]
    more = f" and {len(found) - 20} more" if len(found) > 20 else ""
    return (", ".join(found[:20]) or "none") + more


def short(value: Any) -> str:
    """A value as an error shows it."""
    try:
        text = repr(value[:100] if isinstance(value, str | bytes) else value)
    except (RecursionError, ValueError):  # too deep, or a number of too many digits
        return f"{type(value).__name__} of absurd size"
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
