"""A server as a reward: `POST {"prompts": […], "completions": […], "columns": {…}}`, answered by `{"scores": […]}`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tutelage.data.records import Prompt
from tutelage.rewards.reward import Answers, Reward, checked_scores, columns_of
from tutelage.settings.rewards import EndpointReward
from tutelage.terminal import reason, short

LONGEST_WAIT = 60.0  # seconds between two tries


def endpoint_reward(settings: EndpointReward, name: str) -> Reward:
    """The reward of a server.

    Raises:
        ValueError: if the variable that should hold its token is not set.
    """
    what = f"rewards.{name}: {settings.url}"
    client = open_client(settings.url, settings.token_variable, settings.timeout_seconds, what)

    def ask(part: tuple[Sequence[Prompt], Sequence[str]]) -> list[float | None]:
        prompts, texts = part
        content = _post(client, settings, what, _body(prompts, texts, what))
        if not isinstance(content, dict) or "scores" not in content:
            raise ValueError(f'{what}: answered {short(content)}; expected {{"scores": […]}}')
        return checked_scores(content["scores"], len(texts), what)

    def score(answers: Answers) -> list[float | None]:
        starts = range(0, len(answers.texts), settings.batch_size)
        rows = [slice(start, start + settings.batch_size) for start in starts]
        with ThreadPoolExecutor(settings.concurrency) as pool:
            parts = pool.map(ask, [(answers.prompts[r], answers.texts[r]) for r in rows])
            return [score for part in parts for score in part]

    return score


def open_client(url: str, token_variable: str | None, timeout_seconds: float, what: str) -> httpx.Client:
    """A client that sends JSON, with the bearer token that the environment variable holds.

    Raises:
        ValueError: opened by `what`, if the variable is not set or this is no address.
    """
    headers = {"Content-Type": "application/json"}
    if token_variable:
        if not (token := os.environ.get(token_variable)):
            raise ValueError(f"{what}: the environment variable {token_variable} is not set")
        headers["Authorization"] = f"Bearer {token}"
    try:
        httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{what}: is no address: {reason(error)}") from None
    return httpx.Client(headers=headers, timeout=timeout_seconds)


def _body(prompts: Sequence[Prompt], texts: Sequence[str], what: str) -> str:
    """The question as JSON; what a column has besides, as a date, goes as text.

    Raises:
        ValueError: if a column holds NaN or infinity.
    """
    columns = [columns_of(p) for p in prompts]
    names = list(dict.fromkeys(name for row in columns for name in row))
    body = {
        "prompts": [p.model_dump(mode="json", include={"text"})["text"] for p in prompts],
        "completions": list(texts),
        "columns": {name: [row.get(name) for row in columns] for name in names},
    }
    try:
        return json.dumps(body, default=str, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{what}: the prompts' columns cannot be sent: {reason(error)}") from None


def _post(client: httpx.Client, settings: EndpointReward, what: str, body: str) -> Any:
    """The server's answer, asked for again where it may yet come.

    Raises:
        ValueError: if it does not come, or is a refusal.
    """
    fault = ""
    for number in range(settings.retries + 1):
        if number:
            time.sleep(min(2.0 ** (number - 1), LONGEST_WAIT))
        try:
            response = client.post(settings.url, content=body)
        except (httpx.TransportError, httpx.DecodingError) as error:
            fault = f"{type(error).__name__}: {reason(error)}"
            continue
        if response.status_code == 429 or response.status_code >= 500:
            fault = f"status {response.status_code}"
            continue
        if response.status_code != 200:
            raise ValueError(f"{what}: refused with status {response.status_code}: {short(response.text)}")
        try:
            return response.json()
        except ValueError:
            raise ValueError(f"{what}: answered {short(response.text)}, which is not JSON") from None
    raise ValueError(
        f"{what}: no answer after {settings.retries + 1} tries ({fault}); see that the server runs; the same command "
        "goes on from the last checkpoint"
    )
