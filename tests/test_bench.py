"""The benchmark runs on very small work, without its peers' environments, and counts operations as by hand."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# Peers of training live in environments of their own, which take minutes to make.
ALONE = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import bench, peers

def none(version):
    raise peers.PeerError("no environment")

peers.peer_python = none
bench.main()
"""


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's modules can be imported."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_rows_without_a_peer() -> None:
    """Sampling has its peer in this process; a peer that cannot be is a note, and our side is measured all the same."""
    rows = ["mixed", "ppo", "rloo", "grpo", "reward", "dpo", "dpo-rankings", "sft"]
    command = [sys.executable, "-c", ALONE, "--tiny", "--rounds", "1", "--rows", *rows]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in rows:
        assert f"{name}: measured in" in done.stdout
    assert "greedily in fp32, 8 of 8 prompts get the same tokens on both sides" in done.stdout
    assert done.stdout.count("peer not available (fp32, whole): no environment") == 8  # two rows of sft want it


def test_operations(modules: None) -> None:
    """Two for each parameter and token, four for each channel, layer and pair that attends, logits where wanted."""
    import roof
    from work import Shape, Work

    shape = Shape(width=128, layers=2, heads=4, vocabulary=10)
    assert shape.inner == 344
    assert shape.backbone == 2 * (4 * 128 * 128 + 3 * 128 * 344)
    assert roof.forward(shape, [4], 3) == 2 * shape.backbone * 4 + 4 * 128 * 2 * 8 + 2 * 1280 * 3
    work = Work(shape, 1, (4, 4), 2)
    grown = roof.forward(shape, [6]) - roof.forward(shape, [4])
    assert roof.sampling(work) == roof.forward(shape, [4]) + grown + 2 * 1280 * 2
    assert roof.sampling(work, 3) - roof.sampling(work, 2) == grown + 2 * 1280 * 2
    assert roof.ranking(shape, 4, 2, 1) == 3 * roof.forward(shape, [6])
    assert roof.tree(shape, 4, [2, 1]) == roof.forward(shape, [6]) + roof.forward(shape, [5]) - roof.forward(shape, [4])
    assert roof.preference(shape, 4, [2]) == 3 * roof.forward(shape, [5], 2)
    assert roof.group(work, 1) == roof.sampling(work) + roof.forward(shape, [6]) + 4 * roof.forward(shape, [5], 2)


def test_without_bf16_units(modules: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No peer is tried in bf16, there is no roof of it, and the table says so."""
    import peers
    import results
    import roof

    def share(units: bool) -> tuple[list[str], dict[str, float], str]:
        for module in (peers, roof):
            monkeypatch.setattr(module, "has_bf16_units", lambda: units)
        monkeypatch.setattr(roof, "SHAPES", ((8, 8, 8),))
        measured: dict[str, float] = {}
        roof.measure(measured, 0.01)
        row = results.Row("work", "pieces/s", ours=[2.0], peer=[1.0], flops=measured["fp32"] / 2)
        return list(peers.precisions(whole={})), measured, row.cells(measured)[-2]

    ways, measured, cell = share(units=True)
    assert ways == ["fp32, whole", "bf16, whole"]
    assert cell.endswith("%")
    assert "no bf16 units" not in results.how(measured)
    ways, measured, cell = share(units=False)
    assert ways == ["fp32, whole"]
    assert list(measured) == ["fp32"]
    assert cell == "–"
    assert "no bf16 units on this machine: both sides in fp32" in results.how(measured)


def test_each_row_has_the_fastest_of_its_own_ways(
    modules: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A way that two rows name runs once; only the chosen ones go on running; one that cannot is noted where named."""
    import peers
    from results import Row

    running: dict[str, int] = {}

    @contextlib.contextmanager
    def trl(version: str, script: str, folder: Path, settings: dict[str, Any]) -> Iterator[peers.Peer]:
        if not settings["seconds"]:
            raise peers.PeerError("cannot")
        name = str(settings["name"])
        running[name] = running.get(name, 0) + 1
        try:
            yield lambda: [settings["seconds"]]
        finally:
            running[name] -= 1

    monkeypatch.setattr(peers, "trl", trl)
    ways = {name: {"name": name, "seconds": s} for name, s in {"a": 4.0, "b": 2.0, "c": 1.0, "d": 0.0}.items()}
    few, all_of_them = Row("few", "steps/s"), Row("all", "steps/s")
    with contextlib.ExitStack() as stack:
        choices = [(all_of_them, ways), (few, {name: ways[name] for name in "ab"})]
        chosen, answers = peers.fastest_of_each(stack, choices, ("1", "script"), tmp_path, lambda answer: 1.0)
        assert [peer and peer() for peer in chosen] == [[1.0], [2.0]]
        assert {name: len(told) for name, told in answers.items()} == {"a": 2, "b": 3, "c": 3, "d": 0}
        assert running == {"a": 0, "b": 1, "c": 1}
    assert not any(running.values())
    assert few.notes == ["peer is TRL 1, b (in the warm-up, steps/s: a 0.25, b 0.5)"]
    assert all_of_them.notes == [
        "peer not available (d): cannot",
        "peer is TRL 1, c (in the warm-up, steps/s: a 0.25, b 0.5, c 1)",
    ]


def test_completions_end_as_often_as_asked(modules: None, tmp_path: Path) -> None:
    """The end channel is solved for: the mean of many completions is near the one asked for."""
    from sampling_rows import Batch
    from work import TINY, end_token, make_models, mixed, prompt_ids

    from tutelage.models.loading import load_policy
    from tutelage.models.tokens import load_tokenizer
    from tutelage.sampling.local import LocalSampler

    work = mixed(TINY, 16)
    make_models(tmp_path, work)
    prompts = prompt_ids(tmp_path)
    assert sorted(map(len, prompts)) == sorted(work.lengths)
    assert (min(work.lengths), max(work.lengths)) == work.prompts
    batch = Batch(prompts, work.most, end_token(tmp_path), copies=64)
    sampler = LocalSampler(load_policy(tmp_path / "policy", load_tokenizer(tmp_path / "policy")))
    lengths = [len(ids) for ids in batch.ours(sampler, 0)]
    assert sum(lengths) / len(lengths) == pytest.approx(work.mean, abs=0.6)  # 1024 of standard deviation about 5
