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

from jinja2 import Environment

SECONDS = 10.0  # of processor time; a conversation takes a few milliseconds
MEMORY = 1 << 30  # bytes


class TooMuch(Exception):
    """A template took too long, or too much memory."""

    def __init__(self) -> None:
        super().__init__(f"it takes more than {SECONDS:.0f} s or {MEMORY >> 20} MiB; use another model")


_lock = threading.Lock()
_ends: dict[int, float] = {}  # threads that render, and the processor time at which they have to be done


@lru_cache(maxsize=1)
def _watcher() -> threading.Thread:
    """The thread that watches, started on first use."""

    def watch() -> None:
        while True:
            time.sleep(SECONDS / 20)
            with _lock:
                for thread in [thread for thread, end in _ends.items() if time.process_time() > end]:
                    del _ends[thread]
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TooMuch))

    thread = threading.Thread(target=watch, name="template watch", daemon=True)
    thread.start()
    return thread


@contextmanager
def bounded(template: str) -> Iterator[None]:
    """What is rendered within has an end.

    Raises:
        TooMuch: if it took too long or too much memory, or the template raises to a power.
    """
    if _has_power(template):
        raise TooMuch
    _watcher()
    me = threading.get_ident()
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        with _lock:
            _ends[me] = time.process_time() + SECONDS
        _limit_memory(*before)
        yield
    except (MemoryError, RecursionError):
        raise TooMuch from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        with _lock:
            _ends.pop(me, None)


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
    """Whether a template raises to a power."""
    return any(kind == "operator" and text == "**" for _, kind, text in Environment().lex(template))
