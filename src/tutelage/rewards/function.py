"""A Python function as a reward: `f(prompts, completions, **columns) -> list[float | None]`, sync or async.

It is called as TRL calls its reward functions: a plain prompt is a string, and so is its completion; a conversation is
a list of messages, and its completion a list of one.
"""

from __future__ import annotations

import asyncio
import copy
import importlib
import importlib.util
import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from tutelage.data.records import Prompt
from tutelage.rewards.reward import Answers, checked_scores, columns_of
from tutelage.rewards.reward import Reward as Scorer
from tutelage.settings.common import Group
from tutelage.settings.rewards import FunctionReward
from tutelage.terminal import listed, reason, short


def function_reward(settings: FunctionReward, name: str) -> Scorer:
    """The reward of a function.

    Raises:
        ValueError: if there is no such function, or it does not take prompts and completions.
    """
    what = f"rewards.{name}: {settings.function}"
    function = load_function(settings.function, what)
    wanted = columns_wanted(function, ("prompts", "completions"), what)

    def score(answers: Answers) -> list[float | None]:
        columns = columns_for(answers.prompts, wanted, ("prompts", "completions"), what)
        prompts = [as_given(p) for p in answers.prompts]
        completions = [as_completion(p, text) for p, text in zip(answers.prompts, answers.texts, strict=True)]
        arguments = {"prompts": prompts, "completions": completions, **columns}
        return checked_scores(call(function, arguments, settings.timeout_seconds, what), len(prompts), what)

    return score


def load_function(path: str, what: str) -> Callable[..., Any]:
    """The function `module:function`; the module may lie in the working folder. `what` opens errors.

    Raises:
        ValueError: if there is none, or its module fails.
    """
    module, _, attribute = path.partition(":")
    with _working_folder():
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module.split(".")[0] and error.name != module:
                raise ValueError(f"{what}: {module} needs {error.name}, which is missing") from None
            raise ValueError(
                f"{what}: no module {module!r}; install it, or give the command in the folder that "
                f"holds {module.split('.')[0]}.py (now {os.getcwd()})"
            ) from None
        except Exception as error:
            raise ValueError(f"{what}: importing {module} fails: {_where(error)}") from None
    function = getattr(loaded, attribute, None)
    if not callable(function):
        known = [n for n, value in vars(loaded).items() if inspect.isfunction(value) and not n.startswith("_")]
        raise ValueError(f"{what}: {module} has no function {attribute!r}; it has {listed(known)}")
    return function


def sources_of(settings: Mapping[str, Group], setting: str = "rewards") -> dict[str, Path]:
    """The files of functions' modules, which are inputs of the run that they reward or judge."""
    files = {}
    for name, each in settings.items():
        if (path := getattr(each, "function", None)) is not None:
            with _working_folder(), suppress(ImportError, ValueError, AttributeError):
                spec = importlib.util.find_spec(path.partition(":")[0])
                if spec and spec.origin and os.path.isfile(spec.origin):
                    files[f"{setting}.{name}.source"] = Path(spec.origin)
    return files


@contextmanager
def _working_folder() -> Iterator[None]:
    """The working folder among those that modules are imported from, as `python -m` has it."""
    folder = os.getcwd()
    added = folder not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if added:
            sys.path.remove(folder)


def columns_wanted(function: Callable[..., Any], own: Sequence[str], what: str) -> dict[str, bool] | None:
    """The columns that a function names beside its `own` arguments, and whether it needs each; None if it takes all.

    Raises:
        ValueError: if it cannot be called with its own arguments.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some that are written in C
        raise ValueError(f"{what}: does not say what it takes; wrap it in a function of your own") from None
    kinds = {p.kind for p in parameters.values()}
    every = inspect.Parameter.VAR_KEYWORD in kinds
    if missing := [n for n in own if n not in parameters and not every]:
        raise ValueError(
            f"{what}: takes ({', '.join(parameters)}), no {missing[0]!r}; expected ({', '.join(own)}, …), or "
            "**columns for what it does not name"
        )
    if theirs := [n for n in ("completion_ids", "trainer_state", "log_extra", "log_metric") if n in parameters]:
        raise ValueError(f"{what}: wants TRL's {theirs[0]}, which is not passed here; use completions and columns")
    if every:
        return None
    return {n: p.default is inspect.Parameter.empty for n, p in parameters.items() if n not in own}


def columns_for(
    prompts: Sequence[Prompt], wanted: dict[str, bool] | None, own: Sequence[str], what: str
) -> dict[str, list[Any]]:
    """The wanted columns of prompts, by name.

    Raises:
        ValueError: if no prompt has a column that is needed.
    """
    rows = [columns_of(p) for p in prompts]
    known = list(dict.fromkeys(name for row in rows for name in row))
    if wanted is not None:
        if missing := [name for name, needed in wanted.items() if needed and name not in known]:
            raise ValueError(
                f"{what}: wants a column {missing[0]!r}, which no prompt has; their columns are {listed(known)}"
            )
        known = [name for name in wanted if name in known]
    # A column is copied, as a function may change what it is given.
    return {name: [copy.deepcopy(row.get(name)) for row in rows] for name in known if name not in own}


def as_given(prompt: Prompt) -> Any:
    """A prompt as functions are given it: a string, or a list of messages."""
    return prompt.text if isinstance(prompt.text, str) else [turn.model_dump() for turn in prompt.text]


def as_completion(prompt: Prompt, text: str) -> Any:
    """A completion as functions are given it: of a conversation, a list of one message."""
    return text if isinstance(prompt.text, str) else [{"role": "assistant", "content": text}]


def call(function: Callable[..., Any], arguments: dict[str, list[Any]], seconds: float, what: str) -> Any:
    """What the function returns.

    Raises:
        ValueError: if it raises something, or takes longer.
    """
    number = len(next(iter(arguments.values())))
    late = ValueError(
        f"{what}: took more than {seconds:g} s for {number} completions; make it faster, or raise its "
        "timeout_seconds; the same command goes on from the last checkpoint"
    )
    try:
        with _working_folder(), _time_limit(seconds, late):  # it may import something only now
            given = function(**arguments)
            if inspect.isawaitable(given):
                given = _awaited(given, seconds, late)
            return given
    except (Exception, SystemExit) as error:
        if error is late:
            raise
        raise ValueError(
            f"{what}: raised {_where(error)}; once its cause is gone the same command goes on from the last "
            "checkpoint, but a changed function begins the run anew"
        ) from error


def _awaited(work: Awaitable[Any], seconds: float, late: ValueError) -> Any:
    """What an async function gives, from a thread of its own: this one may run a loop already, as in a notebook."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(asyncio.run(_within(work, seconds, late)))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result()


async def _within(work: Awaitable[Any], seconds: float, late: ValueError) -> Any:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await work
    except TimeoutError:
        if limit.expired():
            raise late from None
        raise


@contextmanager
def _time_limit(seconds: float, late: ValueError) -> Iterator[None]:
    """Raise `late` within it after so many seconds. It interrupts the main thread; in another one there is no limit.

    It has a handler of its own, as Python installs none where SIGINT is ignored: in what a script starts with `&`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    main, over, previous = threading.get_ident(), threading.Event(), signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        over.set()
        signal.pthread_kill(main, signal.SIGINT)

    def handle(number: int, frame: FrameType | None) -> None:
        if over.is_set():
            raise KeyboardInterrupt
        if callable(previous):
            previous(number, frame)

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    signal.signal(signal.SIGINT, handle)
    timer.start()
    try:
        yield
    except KeyboardInterrupt:
        if over.is_set():
            raise late from None
        raise
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, previous or signal.SIG_DFL)


def _where(error: BaseException) -> str:
    """A caught error in words, with the line that raised it."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {short(reason(error))} ({place.filename}:{place.lineno})"
