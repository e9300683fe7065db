"""The benchmark runs on very small work, without its peers' environments, and counts operations as by hand."""

import subprocess
import sys
from pathlib import Path

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
    rows = ["mixed", "ppo", "reward", "sft"]
    command = [sys.executable, "-c", ALONE, "--tiny", "--rounds", "1", "--rows", *rows]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in rows:
        assert f"{name}: measured in" in done.stdout
    assert "greedily in fp32, 8 of 8 prompts get the same tokens on both sides" in done.stdout
    assert done.stdout.count("peer not available (fp32, whole): no environment") == 3


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
