"""The claims as a page in Markdown, made from claims.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COMMAND = "tutelage claims --output runs/claims"
VERDICTS = {True: "**shown**", False: "not shown", None: "left out"}
INTRODUCTION = """\
# The paper's claims in the miniature world

Made by `{command}`; do not edit it by hand. {runs}

Each row is a claim of [Ouyang et al. 2022](https://arxiv.org/abs/2203.02155) or of the work around it, checked by an
experiment in [the miniature world](../src/tutelage/lab/world), whose models have about 0.9M parameters and whose people
are simulated. **Shown** means that the 95 % interval of every number that counts lies where it was expected, and so
does each seed's own value. The unit of an interval is the prompt (of losses on text the document, of bandits the
bandit), pooled over seeds. It says how well the prompts measure these models, not how another seed would train: that is
what the seeds' own values are for. Sizes, rates and regions were fixed before the first full run, but for the
tokens of the large base, raised from 4 to 6 million before it ever ran whole; no claim was tuned.
Not shown does not mean refuted; *clearly otherwise* means that interval and seeds all lie on the other side.

`tutelage claims --output runs/claims` makes it all again: it goes on where it was interrupted, and skips what is done.
`--claims tax,epochs` checks some claims alone, `--seeds 0,1` fewer seeds, and `--fast` one seed of everything smaller,
in about ten minutes. The figures' points are in `verdict/points.csv`.
"""


def page(content: Mapping[str, Any], figure: str | None = None) -> str:
    """A table of all claims, the figure if its address is given, and each claim's numbers by seed."""
    made = COMMAND + " --fast" * content["fast"]
    lines = [INTRODUCTION.format(command=made, runs=runs_in_words(content)), *table(content)]
    if figure is not None:
        lines += ["", f"![Each claim's points, a colour for each series and a line for each seed]({figure})"]
    for claim in content["claims"]:
        lines += ["", *section(claim, content["seeds"])]
    return "\n".join(lines) + "\n"


def runs_in_words(content: Mapping[str, Any]) -> str:
    """What the page was made from."""
    seeds = content["seeds"]
    listed = ", ".join(map(str, seeds))
    minutes = f"{content['run_seconds'] / 60:,.1f} minutes"
    whole = f"Seed{'s' if len(seeds) > 1 else ''} {listed}; the runs took {minutes} in all."
    if content["fast"]:
        return (
            "**This is the `--fast` subset: one seed, and everything smaller.** It shows that the experiments work; "
            f"most claims need the whole. {whole}"
        )
    return whole


def table(content: Mapping[str, Any]) -> list[str]:
    """The claims in rows: claim, experiment, the paper's figure, ours, and the verdict."""
    lines = ["| claim | experiment | the paper | here | |", "|---|---|---|---|---|"]
    for claim in content["claims"]:
        counting = [part for part in claim["parts"] if part["counts"]]
        ours = "<br>".join(f"{part['name']}: {interval(part)}" for part in counting) or claim["left_out"]
        paper = f"{claim['figure']} ({claim['place']})"
        verdict = words(claim["shown"], any(part["otherwise"] for part in counting))
        row = [f"[{claim['sentence']}](#{claim['name']})", claim["experiment"], paper, ours, verdict]
        lines.append("| " + " | ".join(cell(text) for text in row) + " |")
    return lines


def section(claim: Mapping[str, Any], seeds: list[int]) -> list[str]:
    """One claim: what was expected, and every number with its seeds."""
    lines = [
        f"## {claim['name']}",
        "",
        f"{claim['sentence']} Expected: {lowered(claim['expected'])} Judge: {claim['judge']}.",
    ]
    if claim["left_out"]:
        return [*lines, "", f"Left out: {claim['left_out']}."]
    lines += ["", "| | expected | 95 % interval | units | " + " | ".join(f"seed {s}" for s in seeds) + " | |"]
    lines.append("|---|---|---|---|" + "---|" * len(seeds) + "---|")
    for part in claim["parts"]:
        verdict = words(part["shown"], part["otherwise"]) if part["counts"] else ""
        own = [number(part["by_seed"][str(s)]) for s in seeds]
        row = [part["name"], region(part), interval(part), f"{part['units']:,}", *own, verdict]
        lines.append("| " + " | ".join(cell(text) for text in row) + " |")
    return lines


def words(shown: bool | None, otherwise: bool) -> str:
    """The verdict, and whether something is clearly not as expected."""
    return VERDICTS[shown] + (": clearly otherwise" if otherwise else "")


def interval(part: Mapping[str, Any]) -> str:
    """Mean and interval."""
    if part["mean"] is None:
        return "not defined"
    if part["low"] is None:
        return f"{number(part['mean'])}, without an interval"
    return f"{number(part['mean'])} [{number(part['low'])}, {number(part['high'])}]"


def region(part: Mapping[str, Any]) -> str:
    """Where a number that counts is expected; nothing of one that is told beside them."""
    if not part["counts"]:
        return "(told beside)"
    least, most = part["above"], part["below"]
    if least is None:
        return f"below {number(most)}"
    return f"above {number(least)}" if most is None else f"{number(least)} to {number(most)}"


def number(value: float | None) -> str:
    """Three decimals, or fewer of large numbers, with a real minus sign."""
    if value is None:
        return "not defined"
    text = f"{value:+.0f}" if abs(value) >= 100 else f"{value:+.2f}" if abs(value) >= 10 else f"{value:+.3f}"
    return "0" if float(text) == 0 else text.replace("-", "−")


def lowered(sentence: str) -> str:
    """A sentence to stand after a colon; a name at its start, as PPO, keeps its capitals."""
    return sentence if sentence[1:2].isupper() else sentence[0].lower() + sentence[1:]


def cell(text: str) -> str:
    """Text that ends no cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")
