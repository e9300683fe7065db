"""Talk to a model in the terminal: the conversation so far is the prompt, the answer is sampled by the local engine."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text as Line

from tutelage.data.records import Message, Prompt
from tutelage.models.architecture import context_length
from tutelage.models.loading import load_policy
from tutelage.models.tokens import load_tokenizer
from tutelage.sampling.completions import Writer, complete
from tutelage.settings.sampler import Sampling
from tutelage.shipped import resolve_model
from tutelage.terminal import printable


def chat(model: str, sampling: Sampling, seed: int) -> None:
    """Read lines until end of input; `/new` forgets the conversation, `/quit` ends it."""
    console = Console()
    source = resolve_model(model)
    tokenizer = load_tokenizer(source)
    writer = Writer(model, load_policy(source, tokenizer), tokenizer)
    room = context_length(writer.policy) - sampling.max_new_tokens
    if room <= 0:
        raise ValueError(
            f"--max-new-tokens {sampling.max_new_tokens} leaves no room in the context of "
            f"{context_length(writer.policy)}"
        )
    title = f"{model} · temperature {sampling.temperature:g} · /new forgets, /quit or Ctrl-D ends"
    console.print(Line(printable(title), style="dim"))
    turns: tuple[Message, ...] = ()
    while True:
        try:
            line = console.input("[bold]you[/bold]  ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line == "/quit":
            return
        if line == "/new":
            turns = ()
        if line in ("", "/new"):
            continue
        turns = (*turns, Message(role="user", content=line))
        while len(turns) > 1 and len(writer.prompt_ids(Prompt(id="chat", text=turns))) > room:
            turns = turns[2:]  # the oldest exchange falls out of the context
        prompt = Prompt(id=f"turn {len(turns)}", text=turns)
        if len(writer.prompt_ids(prompt)) > room:
            console.print(f"[dim]too long: the model's context leaves {room} tokens for the prompt[/dim]")
            turns = turns[:-1]
            continue
        (answer,) = complete(writer, [prompt], seed, sampling)
        seed += 1
        console.print("[bold]model[/bold]", Line(printable(answer.completion.text)))  # not obeyed, nor read as markup
        turns = (*turns, Message(role="assistant", content=answer.completion.text))
