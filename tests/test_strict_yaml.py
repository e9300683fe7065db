"""YAML that no file of settings holds is refused in one line, in no time, and with its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tutelage.cli import main
from tutelage.settings.strict_yaml import parse_yaml, read_yaml

LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "\n".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)
)
MERGED = "a0: &a0 {x: 1}\n" + "\n".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40))
TOWER = "a0: &a0 x\n" + "\n".join(f"a{i}: &a{i} {'[' * 40}*a{i - 1}{']' * 40}" for i in range(1, 45))


def test_values_aliases_and_merges_are_read() -> None:
    text = "base: &base {rate: 1e-3, steps: [1, 2]}\nsft: {<<: *base, rate: 2}\nnone:\n"
    assert parse_yaml("x", text) == {
        "base": {"rate": "1e-3", "steps": [1, 2]}, "sft": {"rate": 2, "steps": [1, 2]}, "none": None
    }  # fmt: skip
    assert parse_yaml("x", "a: &a " + "[" * 24 + "]" * 24 + "\nb: " + "[" * 25 + "*a" + "]" * 25)  # 50 deep
    assert parse_yaml("x", "") is None
    assert parse_yaml("x", "a, b") == "a, b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the name 'a' comes twice; keep one"),
        ("x: {a: 1, 'a': 2}", "line 1: the name 'a' comes twice"),
        ("a: 1\n1: 2", "line 2: the name '1' is not read as text; put it in quotes"),
        ("on: 2", "the name 'on' is not read as text"),
        ("~: 2", "the name '~' is not read as text"),
        ("2024-01-01: 2", "the name '2024-01-01' is not read as text"),
        ("[a]: 2", "line 1: a list or mapping stands where a name is wanted"),
        ("? {a: b}\n: 2", "line 1: a list or mapping stands where a name is wanted"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: !!bool maybe", "not valid YAML"),
        ("a: !!int x", "not valid YAML"),
        ("a: !!int ''", "not valid YAML"),
        ("a: !!binary é", "not valid YAML"),
        ("a: 2024-99-99", "not valid YAML: month must be in 1..12"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
        ("a: " + "9" * 5000, "not valid YAML: Exceeds the limit"),
        ("a: \0", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("{" * 5000, "line 1: is nested more than 50 deep"),
        ("[" * 5000 + "]" * 5000, "line 1: is nested more than 50 deep"),
        ("- " * 5000 + "a", "line 1: is nested more than 50 deep"),
        ("a: &a [*a]", "line 1: holds itself"),
        ("a: &a {b: *a}", "line 1: holds itself"),
        (LAUGHS, "line 6: more than 100,000 values; write them out without aliases"),
        (MERGED, "more than 100,000 values"),
        ("a: &a " + "[" * 24 + "]" * 24 + "\nb: " + "[" * 26 + "*a" + "]" * 26, "line 1: is nested more than 50 deep"),
        (TOWER, "line 3: is nested more than 50 deep"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^x: ") as caught:
        parse_yaml("x", text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(path) == {"a": 1}
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ValueError, match=f"^{path}:2: not UTF-8 text"):
        read_yaml(path)
    path.write_bytes(b"a: " + b"x" * (1 << 18))
    with pytest.raises(ValueError, match=f"^{path}: is larger than 256 KiB"):
        read_yaml(path)
    os.mkfifo(tmp_path / "pipe")
    for endless in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match=f"^{endless}: is a folder or device"):
            read_yaml(endless)


@pytest.mark.parametrize("text", ["1: 2\noutput: o\n", "seed: !!timestamp x\noutput: o\n", "{" * 5000, LAUGHS, TOWER])
def test_the_command_line_names_the_file(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    for argv in (["world", "--config", str(path)], ["run", str(path), "--output", str(tmp_path / "o")]):
        assert main(argv) == 2
        assert capsys.readouterr().err.startswith(f"tutelage: {path}: ")
