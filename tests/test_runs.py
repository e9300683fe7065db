"""A run folder is skipped, resumed, refused or redone, by what it was made of; and it is never half written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tutelage.data.datasets import write_jsonl
from tutelage.files import fingerprint, write_json
from tutelage.runs import DryRun, Run, done, dropped, inputs_of, open_run
from tutelage.settings.common import StageConfig, is_hub_id
from tutelage.training.checkpoints import Checkpoint


class Config(StageConfig):
    data: str
    rate: float = 0.1
    sets: dict[str, str] = {}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "data.jsonl").write_text("one\n")
    return Config(output=tmp_path / "runs" / "a", data=str(tmp_path / "data.jsonl"))


def opened(config: Config, stage: str = "sft") -> Run | None:
    return open_run(stage, config, inputs_of(config, "data", "sets"))


def changed(config: Config, **values: Any) -> Config:
    return config.model_copy(update=values)


def test_a_new_folder_holds_what_it_is_made_of(config: Config) -> None:
    run = opened(config)
    assert run is not None
    assert run.folder == config.output
    written = yaml.safe_load((config.output / "config.yaml").read_text())
    assert Config.model_validate(written) == config
    identity = json.loads((config.output / "inputs.json").read_text())["identity"]
    assert identity["stage"] == "sft"
    assert identity["inputs"] == {"data": fingerprint(Path(config.data))}
    assert identity["settings"] == {"rate": 0.1, "seed": 0, "sets": {}}
    assert done(config.output) is None


def test_done_is_skipped_and_unfinished_goes_on(config: Config) -> None:
    run = opened(config)
    assert run is not None
    run.log(0, {"loss": 1.0})
    again = opened(config)
    assert again is not None
    assert (config.output / "metrics.jsonl").exists()
    results = again.finish(accuracy=0.5)
    assert results["accuracy"] == 0.5
    assert done(config.output) == results
    assert opened(config) is None
    assert opened(changed(config, overwrite=True)) is None  # only another run is replaced
    redone = opened(changed(config, overwrite=True, seed=1))
    assert redone is not None
    assert not (config.output / "metrics.jsonl").exists()
    assert done(config.output) is None


def begun(config: Config, stage: str = "sft") -> None:
    """Open a run and log a step."""
    run = opened(config, stage)
    assert run is not None
    run.log(0, {"loss": 1.0})


def test_a_run_that_was_refused_before_its_work_leaves_the_folder_free(config: Config) -> None:
    opened(config)
    assert opened(changed(config, rate=0.2)) is not None


def test_other_settings_are_refused_by_name(config: Config) -> None:
    begun(config)
    with pytest.raises(ValueError, match=r"holds a run with other settings: rate was 0\.1, is now 0\.2; .*overwrite"):
        opened(changed(config, rate=0.2))
    with pytest.raises(ValueError, match="seed was 0, is now 1"):
        opened(changed(config, seed=1))
    with pytest.raises(ValueError, match="holds a run of stage 'sft'"):
        opened(config, "reward")
    run = opened(changed(config, rate=0.2, overwrite=True))
    assert run is not None
    assert yaml.safe_load((config.output / "config.yaml").read_text())["rate"] == 0.2


def test_other_inputs_are_refused_by_name(config: Config, tmp_path: Path) -> None:
    begun(config)
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_text("one\n")
    os.utime(moved, (0, 0))
    (tmp_path / "data.jsonl").write_text("two\n")
    with pytest.raises(ValueError, match="holds a run with other inputs: data differs"):
        opened(config)
    with pytest.raises(ValueError, match=f"data: {tmp_path}/none: no such file or folder"):
        opened(changed(config, data=f"{tmp_path}/none"))


def test_where_an_input_lies_does_not_matter(config: Config, tmp_path: Path) -> None:
    opened(config)
    (tmp_path / "other").mkdir()
    (tmp_path / "data.jsonl").rename(tmp_path / "other" / "data.jsonl")
    assert opened(changed(config, data=str(tmp_path / "other" / "data.jsonl"))) is not None


def test_inputs_in_mappings_are_inputs_too(config: Config, tmp_path: Path) -> None:
    sets = changed(config, sets={"a": config.data})
    begun(sets)
    assert set(inputs_of(sets, "data", "sets")) == {"data", "sets.a"}
    (tmp_path / "data.jsonl").write_text("two\n")
    with pytest.raises(ValueError, match="differs"):
        opened(sets)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_run_is_never_deleted(config: Config, overwrite: bool) -> None:
    config.output.mkdir(parents=True)
    (config.output / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds files that are not a run of this project; choose another"):
        opened(changed(config, overwrite=overwrite))
    assert (config.output / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ValueError, match="is a file; choose a folder"):
        opened(changed(config, output=config.output / "thesis.txt", overwrite=overwrite))


def test_two_processes_do_not_share_a_folder(config: Config) -> None:
    """The second is refused while the first is at work, and finds its run done, or open, after that."""
    code = (
        "import sys, test_runs; from pathlib import Path\n"
        "c = test_runs.Config(output=Path(sys.argv[1]), data=sys.argv[2], rate=float(sys.argv[3]), overwrite=True)\n"
        "try: run = test_runs.opened(c); print('done' if run is None else 'open')\n"
        "except ValueError as error: print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}

    def other(rate: float = 0.1) -> str:
        arguments = [sys.executable, "-c", code, str(config.output), config.data, str(rate)]
        return subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment).stdout.strip()

    run = opened(config)
    assert run is not None
    refusal = f"output: another process is at work in {config.output}; wait until it ends, or choose another folder"
    assert other() == refusal
    assert other(rate=0.5) == refusal  # overwriting is no exception
    assert opened(config) is not None  # this process goes on
    run.finish()
    assert other() == "done"
    assert other(rate=0.5) == "open"
    assert opened(changed(config, rate=0.7, overwrite=True)) is not None  # a process that ended holds nothing
    assert other() == refusal


def test_fingerprints_follow_content(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "model"  # a folder above may have any name
    (folder / "deep").mkdir(parents=True)
    (folder / "a").write_text("1")
    (folder / "deep" / "b").write_text("2")
    seen = [fingerprint(folder)]
    for path, text in [("a", "3"), ("deep/b", "4"), ("c", ""), ("deep/a", "")]:
        (folder / path).write_text(text)
        seen.append(fingerprint(folder))
    (folder / "a").rename(folder / "d")
    seen.append(fingerprint(folder))
    assert len(set(seen)) == len(seen)
    (folder / "state").mkdir()
    (folder / "state" / "step").write_text("a checkpoint")
    assert fingerprint(folder) == seen[-1]
    assert fingerprint(folder / "d") != fingerprint(folder / "deep" / "b")


def test_done_is_written_last_and_whole(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    run = opened(config)
    assert run is not None
    run.state.mkdir()

    def killed(*paths: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run.finish()
    monkeypatch.undo()
    assert done(config.output) is None
    assert opened(config) is not None


def test_what_was_dropped_is_said_by_reason(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    lost = dropped({"too long": 1200, "empty prompt": 0}, valid={"too long": 3}, texts={"empty text": 0})
    assert lost == {"too long": 1200, "too long in valid": 3}
    run = opened(config)
    assert run is not None
    run.finish(dropped=lost)
    assert capsys.readouterr().err == "sft: rows dropped or changed: 1,200 too long; 3 too long in valid\n"
    run.finish(dropped={})
    assert capsys.readouterr().err == ""


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_resume_forgets_what_it_will_repeat(config: Config) -> None:
    run = opened(config)
    assert run is not None
    for step in range(5):
        run.log(step, {"loss/train": float(step)})
    samples = run.folder / "samples.jsonl"
    samples.write_text("".join(json.dumps({"iteration": i, "completion": "…"}) + "\n" for i in range(5)))
    metrics = run.folder / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [(r["step"], r["loss/train"]) for r in rows] == [(i, float(i)) for i in range(5)]
    for path in (metrics, samples):
        with path.open("a") as stream:
            stream.write('{"step": 3, "iterat')  # killed while writing
    run.forget_after(2)
    assert [json.loads(line) for line in metrics.read_text().splitlines()] == rows[:3]
    assert [json.loads(line)["iteration"] for line in samples.read_text().splitlines()] == [0, 1, 2]
    assert run.seconds >= rows[2]["seconds"]
    run.forget_after(-1)
    assert metrics.read_text() == samples.read_text() == ""


def test_a_run_without_a_checkpoint_begins_anew(config: Config) -> None:
    """Sampling stages have none; their metrics hold each step once all the same."""
    for _ in range(2):
        run = opened(config)
        assert run is not None
        run.log(0, {"answers": 1.0})
    assert len((config.output / "metrics.jsonl").read_text().splitlines()) == 1


def test_progress_in_plain_lines(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    run = opened(config)
    assert run is not None
    for step in run.track(range(2, 4)):
        run.log(step, {"loss/train": 0.25}, show=("loss/train",))
    assert list(run.track(range(4, 4))) == []
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("sft 3/4 ")
    assert last.startswith("sft 4/4 ")
    assert last.endswith("loss/train 0.25")


def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("org/name")
    assert is_hub_id("org/name:split")
    assert not is_hub_id("runs/sft/model")
    assert not is_hub_id("data.jsonl")
    assert not is_hub_id("data/x.jsonl")
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert not is_hub_id("org/name")


# --- killed at any moment ---------------------------------------------------------------------------------------------


def made(config: Config) -> Run:
    """A run that has a checkpoint and a model, and only its end before it."""
    run = opened(config)
    assert run is not None
    run.log(0, {"loss": 1.0})
    for name in ("state", "state.old", "model"):
        (run.folder / name).mkdir(exist_ok=True)
        (run.folder / name / "model.safetensors").write_bytes(b"weights")
    return run


def killed_at(victim: int, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether `work` was stopped before its victim-th change of the disk, as a kill would."""
    calls = iter(range(victim + 1))
    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "rmdir", "mkdir", "rename"):
            real = getattr(os, name)

            def change(*args: Any, real: Any = real, **options: Any) -> Any:
                if next(calls, victim) == victim:
                    raise KeyboardInterrupt
                return real(*args, **options)

            patch.setattr(os, name, change)
        try:
            work()
        except KeyboardInterrupt:
            return True
    return False


def test_killed_while_finishing_a_run_is_whole_or_resumes(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = []
    for victim in count():
        here = changed(config, output=config.output / str(victim))
        run = made(here)
        killed = killed_at(victim, lambda run=run: run.finish(accuracy=0.5), monkeypatch)
        whole = done(run.folder) is not None
        assert whole or (run.state / "model.safetensors").exists()  # what it can resume from
        again = opened(here)
        assert (again is None) == whole
        if again is not None:
            again.finish(accuracy=0.5)
        left = {p.name for p in run.folder.iterdir()}
        assert left == {"config.yaml", "done.json", "inputs.json", "metrics.jsonl", "model"}
        outcomes.append(whole)
        if not killed:
            break
    assert outcomes[0] is False
    assert outcomes[1:] == [True] * (len(outcomes) - 1)
    assert len(outcomes) > 5


def test_killed_while_opening_a_folder_it_is_opened_again(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    for victim in count():
        here = changed(config, output=config.output / str(victim))
        killed = killed_at(victim, lambda here=here: opened(here), monkeypatch)
        run = opened(here)
        assert run is not None
        assert {p.name for p in run.folder.iterdir()} == {"inputs.json", "config.yaml"}
        if not killed:
            break
    assert victim >= 2


def test_killed_while_replacing_a_run_the_old_one_or_the_new_one_is_whole(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    for victim in count():
        old = changed(config, output=config.output / str(victim) / "a")
        new = changed(old, rate=0.2, overwrite=True)
        made(old).finish()

        def replace(new: Config = new) -> None:
            if opened(new) is not None:
                made(new).finish()

        killed = killed_at(victim, replace, monkeypatch)
        assert done(old.output) is not None or done(old.output.with_name(".a.before")) is not None
        replace()
        assert yaml.safe_load((new.output / "config.yaml").read_text())["rate"] == 0.2
        assert [p.name for p in new.output.parent.iterdir()] == ["a"]
        assert opened(new) is None
        if not killed:
            break
    assert victim >= 20


def test_what_is_replaced_waits_until_the_new_run_is_done(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(config).finish(accuracy=0.5)
    aside = config.output.with_name(".a.before")
    new = changed(config, rate=0.2, overwrite=True)
    begun(new)
    assert f"the run that was here waits in {aside}" in capsys.readouterr().err
    begun(changed(new, rate=0.3))  # a second change of mind does not cost it
    assert (done(aside) or {})["accuracy"] == 0.5
    with pytest.raises(ValueError, match=rf"rate was 0\.3, is now 0\.1; .* brings back the run that waits in {aside}"):
        opened(config)
    assert opened(changed(config, overwrite=True)) is None  # the old command brings it back
    assert f"{config.output}: the run that waited in {aside} is back" in capsys.readouterr().err
    assert (done(config.output) or {})["accuracy"] == 0.5
    assert not aside.exists()
    made(new).finish()
    assert [p.name for p in config.output.parent.iterdir()] == ["a"]


def test_killed_while_bringing_back_the_replaced_run_is_kept(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    for victim in count():
        old = changed(config, output=config.output / str(victim) / "a", overwrite=True)
        made(old).finish(accuracy=0.5)
        begun(changed(old, rate=0.2))
        killed = killed_at(victim, lambda old=old: opened(old), monkeypatch)
        assert opened(old) is None
        assert (done(old.output) or {})["accuracy"] == 0.5
        assert [p.name for p in old.output.parent.iterdir()] == ["a"]
        if not killed:
            break
    assert victim > 5


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a run that was refused"])
def test_a_run_that_waits_is_replaced_by_no_third(left: str, config: Config) -> None:
    """After a kill between moving it aside and beginning, or where the new one failed and was deleted."""
    made(config).finish(accuracy=0.5)
    os.replace(config.output, aside := config.output.with_name(".a.before"))
    if left != "nothing":
        config.output.mkdir()
    if left == "a run that was refused":
        opened(changed(config, rate=0.2, overwrite=True))
    with pytest.raises(ValueError, match=rf"{aside} holds a run .* rate was 0\.1, is now 0\.3; .* or set overwrite"):
        opened(changed(config, rate=0.3))
    assert opened(config) is None
    assert (done(config.output) or {})["accuracy"] == 0.5


def test_what_is_left_of_a_replaced_run_is_not_taken_for_one(config: Config) -> None:
    """A kill after the new run was done, while the old one was being deleted."""
    made(config).finish(accuracy=0.5)
    aside = config.output.with_name(".a.before")
    aside.mkdir()
    (aside / "half.safetensors").write_bytes(b"of a model")
    begun(changed(config, rate=0.2, overwrite=True))
    assert (done(aside) or {})["accuracy"] == 0.5


def test_settings_that_change_no_result_are_no_other_run(config: Config) -> None:
    class Trained(Config):
        micro_batch_tokens: int = 2048
        checkpoint_seconds: float = 20.0

    begun(Trained(**config.model_dump()))
    small = Trained(**config.model_dump(), micro_batch_tokens=64, checkpoint_seconds=1.0)
    assert opened(small) is not None
    known = config.output / "inputs.json"
    identity = json.loads(known.read_text())
    identity["identity"]["settings"]["micro_batch_tokens"] = 2048  # as earlier versions wrote it
    known.write_text(json.dumps(identity))
    assert opened(small) is not None


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_finished_run_that_lost_its_model_is_done_again(
    how: str, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(config)
    for name in ("model/tokenizer.json", "results.jsonl"):
        (run.folder / name).write_text("{}")
    assert run.finish()["files"] == {"model/model.safetensors": 7, "model/tokenizer.json": 2, "results.jsonl": 2}
    weights = config.output / "model" / "model.safetensors"
    (config.output / "metrics.jsonl").unlink()
    (config.output / "model" / "tokenizer.json").write_text('{"edited": "by hand"}')
    assert opened(config) is None  # the weights are as they were
    if how == "gone":
        weights.unlink()
    else:
        weights.write_bytes(b"wei")
    assert opened(changed(config, dry_run=True)) is not None
    assert done(config.output) is not None
    assert opened(config) is not None
    said = "is gone" if how == "gone" else "is cut short or changed"
    assert f"sft: {weights} {said}, so this run is done again" in capsys.readouterr().err
    assert done(config.output) is None


@pytest.mark.parametrize("name", ["model/tokenizer.json", "results.jsonl"])
def test_a_finished_run_that_lost_another_file_is_done_again(name: str, config: Config) -> None:
    run = made(config)
    (run.folder / name).write_text("{}")
    run.finish()
    (config.output / name).unlink()
    assert opened(config) is not None


@pytest.mark.parametrize("name", ["inputs.json", "done.json"])
@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"identity": ', "no JSON"), ("[1]", "it"), ('{"files": [1]}', "it"),
        ('{"files": 1, "identity": {"stage": "sft", "settings": [], "inputs": {}}}', "it"),
    ],
)  # fmt: skip
def test_a_damaged_file_of_a_run_is_named(name: str, content: str, why: str, config: Config) -> None:
    made(config).finish()
    (config.output / name).write_text(content)
    with pytest.raises(ValueError, match=f"{config.output / name}: is damaged, {why}"):
        opened(config)


@pytest.mark.parametrize("damage", [b'{"step": 1, "sec', b'{"stop": 1}', b"\xff\xfe", b"[1]", b'{"step": "1"}'])
def test_a_damaged_row_of_the_log_is_named(damage: bytes, config: Config) -> None:
    """A kill cuts the last row short, and no other."""
    run = made(config)
    log = config.output / "metrics.jsonl"
    row = log.read_bytes()
    log.write_bytes(row + damage)
    run.forget_after(5)
    assert log.read_bytes() == row
    log.write_bytes(row + damage + b"\n" + row)
    with pytest.raises(ValueError, match=f"{log}:2: is damaged; mend the line, or delete {config.output}"):
        run.forget_after(5)


def test_a_folder_deleted_under_a_run_ends_it(config: Config) -> None:
    """What is written later must not pass for the run."""
    run = made(config)
    model = torch.nn.Linear(1, 1)
    checkpoint = Checkpoint(run, {"model": model}, {}, 0.0)
    shutil.rmtree(run.folder)
    for work in (
        lambda: run.log(1, {"loss": 1.0}), lambda: run.once("part", list), lambda: checkpoint.save(1), run.finish,
        lambda: write_json(run.folder / "summary.json", {}), lambda: write_jsonl(run.folder / "answers.jsonl", ["a"]),
    ):  # fmt: skip
        with pytest.raises((OSError, ValueError)):
            work()
        assert not run.folder.exists()
    run.folder.mkdir()
    with pytest.raises(ValueError, match="was moved, deleted or emptied while the run"):
        run.finish()
    assert done(run.folder) is None


def test_a_folder_moved_under_a_run_gets_nothing_more(config: Config) -> None:
    """Another run has its name by now: the two must not be mixed."""
    run = made(config)
    kept = Checkpoint(run, {"model": torch.nn.Linear(1, 1)}, {}, 0.0)
    config.output.rename(config.output.with_name("b"))
    other = changed(config, rate=0.2)
    made(other)
    before = {p: p.read_bytes() for p in config.output.rglob("*") if p.is_file()}
    for work in (lambda: run.log(1, {"loss": 1.0}), lambda: run.once("part", list), lambda: kept.save(1), run.finish):
        with pytest.raises(ValueError, match="was moved, deleted or emptied while the run was at work"):
            work()
    assert {p: p.read_bytes() for p in config.output.rglob("*") if p.is_file()} == before


def test_a_finished_run_is_skipped_without_a_change_of_the_disk(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may be read-only by now."""
    made(config).finish()
    assert not killed_at(0, lambda: opened(config), monkeypatch)


def test_killed_while_a_model_is_replaced_the_old_one_is_put_back(config: Config) -> None:
    folder = made(config).folder
    (folder / "model").rename(folder / "model.old")
    opened(config)
    assert (folder / "model" / "model.safetensors").read_bytes() == b"weights"
    (folder / "model.old").mkdir()
    opened(config)
    assert {p.name for p in folder.glob("model*")} == {"model"}
    assert (folder / "state.old").exists()


def test_an_input_of_an_unfinished_run_is_named(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    first = made(config)
    second = changed(config, data=str(first.folder / "model" / "model.safetensors"), output=config.output / "b")
    whole = changed(second, data=str(first.folder / "model"))
    opened(whole)
    told = f"sft: data: {first.folder / 'model'} belongs to a run that is not finished"
    assert told in capsys.readouterr().err
    first.finish()
    opened(whole)
    assert told not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["link", "."])
def test_a_link_or_this_folder_as_output(
    name: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    (disk / "run").mkdir(parents=True)
    (tmp_path / "link").symlink_to(disk / "run")
    monkeypatch.chdir(disk / "run" if name == "." else tmp_path)
    here = changed(config, output=Path(name))
    made(here).finish(accuracy=0.5)
    monkeypatch.chdir(tmp_path)
    again = changed(here, output=Path("link"), rate=0.2, overwrite=True)
    made(again).finish(accuracy=0.6)
    assert opened(again) is None
    assert (tmp_path / "link").is_symlink()
    assert (done(disk / "run") or {})["accuracy"] == 0.6
    assert [p.name for p in disk.iterdir()] == ["run"]


def test_work_is_done_once(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    run = opened(config)
    assert run is not None
    seen = []

    def work() -> dict[str, Any]:
        seen.append(1)
        return {"texts": ("a\ud800", "b"), "mean": 0.1}

    found = run.once("first", work)
    again = opened(config)
    assert again is not None
    assert again.once("first", work) == found == {"texts": ["a\ud800", "b"], "mean": 0.1}
    assert len(seen) == 1
    kept = again.state / "first.json"
    whole = kept.read_bytes()
    for content in (b"", whole[:20], whole.replace(b'"b"', b'"c"')):
        kept.write_bytes(content)
        assert again.once("first", work) == found
        assert f"sft: {kept}: is damaged" in capsys.readouterr().err
        assert kept.read_bytes() == whole
    assert len(seen) == 4
    again.finish()
    assert not again.state.exists()


# --- before the first step --------------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing_and_ends_before_the_first_step(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    run = opened(changed(config, dry_run=True))
    assert run is not None
    with pytest.raises(DryRun):
        run.begin("3 updates of 2 rows")
    assert capsys.readouterr().err == "sft: 3 updates of 2 rows\n"
    assert not config.output.exists()
    begun(config)
    before = sorted(config.output.parent.rglob("*"))
    with pytest.raises(ValueError, match=r"rate was 0\.1, is now 0\.2"):
        opened(changed(config, dry_run=True, rate=0.2))
    assert opened(changed(config, dry_run=True, rate=0.2, overwrite=True)) is not None
    assert sorted(config.output.parent.rglob("*")) == before


def test_a_disk_that_is_too_full_is_seen_before_the_first_step(config: Config) -> None:
    run = opened(config)
    assert run is not None
    run.begin(disk=1 << 20)
    with pytest.raises(ValueError, match=r"this run writes about 1,099,511,627,776 MiB, and [\d,]+ MiB are free there"):
        run.begin(disk=1 << 60)
