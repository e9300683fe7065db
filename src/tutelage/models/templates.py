"""Bounds of a chat template, which is a program that came with a model's folder.

The library's sandbox keeps it from files and modules, but lets it run for ever and take all memory. Here a rendering
ends after some seconds and some memory. A signal would do for the main thread only, and would take the place of
somebody else's alarm; a process of its own would cost more than all renderings together. So another thread watches the
time and raises an error in the one that renders, and the system refuses memory past a limit. One operation that takes
for ever cannot be ended so: of those, Jinja has powers of whole numbers, which no template needs.
"""

from __future__ import annotations

import ctypes
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise

from jinja2 import Environment

SECONDS = 10.0  # of processor time; a conversation takes a few milliseconds
MEMORY = 1 << 30  # bytes


class TooMuch(Exception):
    """A template takes too long or too much memory, or might."""

    def __init__(self, why: str = "") -> None:
        why = why or f"has no end: it takes more than {SECONDS:.0f} s or {MEMORY >> 20} MiB"
        super().__init__(f"{why}; use another model")


_one = threading.Lock()  # one template at a time, as the limit of memory is the whole process's
_guard = threading.Lock()  # of what follows
_deadline: tuple[int, float] | None = None  # the thread that renders, and the processor time at which it must be done


@lru_cache(maxsize=1)
def _watcher() -> threading.Thread:
    """The thread that watches, started on first use."""

    def watch() -> None:
        global _deadline
        while True:
            time.sleep(SECONDS / 20)
            with _guard:
                if _deadline and time.process_time() > _deadline[1]:
                    thread = ctypes.c_ulong(_deadline[0])
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TooMuch))
                    _deadline = None

    thread = threading.Thread(target=watch, name="template watch", daemon=True)
    thread.start()
    return thread


@contextmanager
def bounded(template: str) -> Iterator[None]:
    """Limit the time and memory of rendering a template; other threads that render wait.

    Raises:
        TooMuch: if it took too long or too much memory, or the template raises to a power.
    """
    global _deadline
    if _has_power(template):
        raise TooMuch("raises to a power (`**`), which may take for ever")
    _watcher()
    with _one:
        before = resource.getrlimit(resource.RLIMIT_AS)
        try:
            with _guard:
                _deadline = threading.get_ident(), time.process_time() + SECONDS
            _limit_memory(*before)
            yield
        except (MemoryError, RecursionError):
            raise TooMuch from None
        finally:
            try:
                with _guard:
                    _deadline = None
            finally:  # even if the watcher's error arrives only now
                resource.setrlimit(resource.RLIMIT_AS, before)


def _limit_memory(soft: int, hard: int) -> None:
    """Refuse this process more than `MEMORY` above what it has, where the system tells what that is (Linux)."""
    try:
        with open("/proc/self/statm", "rb") as file:
            pages = int(file.read().split()[0])
    except OSError:
        return
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most if soft == resource.RLIM_INFINITY else min(most, soft), hard))


@lru_cache
def _has_power(template: str) -> bool:
    """Whether a template raises to a power; a `**` after a comma or an opening bracket unpacks keywords."""
    tokens = [(kind, text) for _, kind, text in Environment().lex(template) if kind != "whitespace"]
    return any(token == ("operator", "**") and before[1] not in ("(", ",") for before, token in pairwise(tokens))
