"""The same commands on real input: prepare public files, then run examples/real_input.yaml on them.

    python examples/real_input.py --model MODEL --demonstrations instruction-data.json \
        --rankings quality.jsonl.gz --stories tinystories.jsonl --output runs/real

MODEL is a small Hugging Face causal language model. The rankings are people's judgements of the E2E NLG challenge, one
line per worker and unit: `mr` (the meaning to be put into words), `worker`, `candidates` with `text` and `score`. They
are split by meaning, and one worker in five is held out whole.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import shutil
from pathlib import Path

from tutelage.cli import main
from tutelage.data.datasets import read_demonstrations, read_texts, write_jsonl
from tutelage.data.records import Completion, Demonstration, Message, Prompt, Ranking


def share(text: str) -> float:
    """A fixed number in [0, 1) of a text, to split by."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def human_rankings(path: Path) -> list[Ranking]:
    """One ranking per worker and unit; equal scores are ties; identical texts are merged, the better score kept."""
    rankings = []
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            best: dict[str, float] = {}
            for candidate in row["candidates"]:
                best[candidate["text"]] = max(candidate["score"], best.get(candidate["text"], candidate["score"]))
            if len(best) < 2:
                continue
            ordered = sorted(set(best.values()), reverse=True)
            text = (Message(role="user", content=f"Describe: {row['mr']}"),)
            prompt = Prompt(id=hashlib.sha256(row["mr"].encode()).hexdigest()[:16], text=text)
            ranks = tuple(ordered.index(score) + 1 for score in best.values())
            rankings.append(
                Ranking(
                    prompt=prompt,
                    completions=tuple(Completion(text=t) for t in best),
                    ranks=ranks,
                    labeler=row["worker"],
                )
            )
    return rankings


def prepare(arguments: argparse.Namespace, folder: Path) -> None:
    """Write the recipe's input files, and all workers' rankings of the held-out meanings."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(arguments.model, folder / "model", dirs_exist_ok=True)
    write_jsonl(folder / "demonstrations.jsonl", read_demonstrations(arguments.demonstrations).records)
    stories = read_texts(arguments.stories).records
    write_jsonl(folder / "stories.jsonl", stories[100:])
    write_jsonl(folder / "stories_valid.jsonl", stories[:100])
    rankings = human_rankings(arguments.rankings)
    train = [r for r in rankings if share(r.prompt.id) < 0.75 and share(str(r.labeler)) >= 0.2]
    valid = [r for r in rankings if share(r.prompt.id) >= 0.75]
    heldout = [r for r in valid if share(str(r.labeler)) < 0.2]
    write_jsonl(folder / "rankings.jsonl", train)
    write_jsonl(folder / "rankings_same_workers.jsonl", [r for r in valid if share(str(r.labeler)) >= 0.2])
    write_jsonl(folder / "rankings_heldout_workers.jsonl", heldout)
    by_prompt: dict[str, Prompt] = {r.prompt.id: r.prompt for r in train}
    write_jsonl(folder / "prompts.jsonl", list(by_prompt.values()))
    write_jsonl(folder / "prompts_test.jsonl", list({r.prompt.id: r.prompt for r in valid}.values()))
    favourites: dict[str, Demonstration] = {}
    for r in train:
        favourites[r.prompt.id] = Demonstration(
            prompt=r.prompt, completion=r.completions[r.ranks.index(min(r.ranks))].text
        )
    write_jsonl(folder / "descriptions.jsonl", list(favourites.values()))
    write_jsonl(folder / "rankings_all_workers.jsonl", valid)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "demonstrations", "rankings", "stories", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    data, model, agreement = (given.output / name for name in ("data", "reward/model", "agreement"))
    prepare(given, data)
    code = main(["run", str(Path(__file__).with_suffix(".yaml")), "--output", str(given.output)])
    if code == 0:
        rankings = str(data / "rankings_all_workers.jsonl")
        code = main(["agreement", "--rankings", rankings, "--reward-model", str(model), "--output", str(agreement)])
    if code == 0:
        reward = json.loads((given.output / "reward" / "done.json").read_text())
        for name, found in reward["valid"].items():
            interval = f"[{found['low']:.3f}, {found['high']:.3f}]"
            print(f"{name}: accuracy {found['accuracy']:.3f} {interval} on {found['pairs']} pairs")
        found = json.loads((agreement / "done.json").read_text())
        for name, rate in {**found["labelers"], **found["reward_model"]}.items():
            print(f"{name}: {rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]")
        curve = [json.loads(line) for line in (given.output / "ppo_ptx" / "metrics.jsonl").read_text().splitlines()]
        first, last = curve[0], curve[-1]
        print(f"score {first['objective/scores']:.3f} -> {last['objective/scores']:.3f}, KL {last['objective/kl']:.2f}")
        answers = json.loads((given.output / "answers" / "done.json").read_text())
        print(f"story loss {answers['pretraining_loss']}")
    raise SystemExit(code)
