"""The package as people get it: sdist and wheel hold every file, and the wheel alone works away from the checkout."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "tutelage"
# Prints where each module that needs no extra was loaded from, and the installed version.
IMPORTS = """
import importlib, importlib.metadata, pathlib, tutelage
home = pathlib.Path(tutelage.__file__).parent
for file in sorted(home.rglob("*.py")):
    module = file.relative_to(home.parent).with_suffix("")
    if module.parts[1] != "labeling" and module.parts[1:] not in (("lab", "world", "rank"), ("__main__",)):
        importlib.import_module(".".join(module.parts).removesuffix(".__init__"))
print(home, tutelage.__version__, importlib.metadata.version("tutelage"))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, and that from a copy of the checkout: an old egg-info there would add what it lists."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(made), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = made.glob("*.whl")
    return path


class Installed:
    """A fresh environment with the wheel; its dependencies, and theirs, are links into the environment of the tests."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder / "venv", symlinks=True)
        self.scripts, self.cwd = folder / "venv" / "bin", folder / "empty"
        self.cwd.mkdir()
        self.site = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder / "venv")}))
        self.environment = {"HOME": str(folder), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
        pip = [sys.executable, "-m", "pip", "--python", str(self.scripts / "python"), "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)], check=True)
        (self.wheel,) = importlib.metadata.distributions(name="tutelage", path=[str(self.site)])
        self.linked: set[tuple[str, str]] = set()
        self.link(self.wheel, "")

    def link(self, distribution: importlib.metadata.Distribution, extra: str) -> None:
        """What `pip install` brings along for a distribution's extra; the extra "" is what it needs by itself."""
        for requirement in map(Requirement, distribution.requires or ()):
            for wanted in ("", *requirement.extras):
                applies = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
                if not applies or (requirement.name, wanted) in self.linked:
                    continue
                self.linked.add((requirement.name, wanted))
                needed = importlib.metadata.distribution(requirement.name)
                for top in {file.parts[0] for file in needed.files or ()} - {"..", "__pycache__"}:
                    if not (self.site / top).exists():
                        (self.site / top).symlink_to(needed.locate_file(top))
                self.link(needed, wanted)

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.scripts / program), *arguments]
        return subprocess.run(command, cwd=self.cwd, env=self.environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    """Code, kernels' sources, recipes, templates, migrations, the shipped model, and the mark of its types."""
    files = {p.relative_to(ROOT / "src").as_posix() for p in PACKAGE.rglob("*") if p.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    assert "tutelage/py.typed" in files
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in packed if ".dist-info/" not in name} == files


def test_the_wheel_alone_runs_the_recipe(wheel: Path, tmp_path: Path) -> None:
    installed = Installed(tmp_path, wheel)
    version = wheel.name.split("-")[1]
    assert installed.run("tutelage", "--version").stdout == f"tutelage {version}\n"
    imports = installed.run("python", "-c", IMPORTS)
    assert imports.stdout.split() == [str(installed.site / "tutelage"), version, version], imports.stderr

    without = installed.run("tutelage", "run", "smoke", "--output", "runs/smoke")
    assert without.returncode == 2
    assert without.stderr == "tutelage: pwdlib is missing; labeling needs pip install 'tutelage[labeling]'\n"
    assert not list(installed.cwd.iterdir())

    installed.link(installed.wheel, "labeling")
    run = installed.run("tutelage", "run", "smoke", "--output", "runs/smoke")
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "runs/smoke/report/report.html"
    assert (installed.cwd / "runs" / "smoke" / "report" / "report.html").is_file()
