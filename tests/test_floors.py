"""An import points down, never up or sideways between rooms; light modules stay light; files are short."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "tutelage"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = [
    {"cache", "shipped", "terminal"},
    {"settings"},
    {"data"},
    {"files", "stats", "objectives"},
    {"runs"},
    {"models"},
    {"training"},
    {"sampling", "rewards", "labeling"},
    {"algorithms"},
    {"stages", "evaluation", "report", "lab"},
    {"recipe"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
LIGHT = [
    "tutelage.cli", "tutelage.recipe", "tutelage.runs", "tutelage.data.datasets",
    *(f"tutelage.settings.{p.stem}" for p in sorted((PACKAGE / "settings").glob("*.py")) if p.stem != "__init__"),
]  # fmt: skip


def room_of(file: Path) -> str:
    """The package or module right under tutelage/ that a file belongs to; "" for tutelage/__init__.py."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0].removeprefix("__init__")


def names_imported(file: Path) -> list[str]:
    """What a file imports, anywhere in it: `package.module`, or `package.module.name`."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ("tutelage", *file.relative_to(PACKAGE).parent.parts)
            base = package[: len(package) + 1 - node.level] if node.level else ()
            names += [".".join((*base, *filter(None, [node.module]), alias.name)) for alias in node.names]
    return names


def rooms_imported(file: Path) -> set[str]:
    return {name.split(".")[1] for name in names_imported(file) if name.startswith("tutelage.")} - {"__version__"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_down(file: Path) -> None:
    room = room_of(file)
    if not room:  # what everything may import imports nothing
        assert not rooms_imported(file)
        return
    allowed = {other for other in FLOOR if FLOOR[other] < FLOOR[room]} | {room}
    assert rooms_imported(file) <= allowed


def test_light_modules_do_without_torch() -> None:
    code = f"import sys, {', '.join(LIGHT)}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_training_does_without_labeling() -> None:
    """Of all rooms only the lab lets people's work be simulated, and only the command line starts the pages."""
    assert {room_of(f) for f in FILES if "labeling" in rooms_imported(f)} == {"labeling", "lab", "cli"}
    modules = [
        ".".join(("tutelage", *f.relative_to(PACKAGE).with_suffix("").parts))
        for f in FILES
        if room_of(f) in ("stages", "evaluation", "report", "training", "algorithms", "sampling")
    ]
    extra = ("sqlalchemy", "alembic", "fastapi", "starlette", "uvicorn", "pwdlib")
    code = f"import sys, {', '.join(modules)}; print([m for m in {extra} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_the_store_of_labeling_knows_its_database() -> None:
    """Pages and commands call its functions: they import neither SQLAlchemy nor tables, and run no statement."""
    banned = ("sqlalchemy", "alembic", "tutelage.labeling.store.schema")
    runs = {"execute", "executemany", "exec_driver_sql", "scalar", "scalars"}
    for file in (f for f in FILES if room_of(f) == "labeling" and "store" not in f.parts):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        calls = {n.func.attr for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)}
        imported = [name for name in names_imported(file) if f"{name}.".startswith(tuple(f"{b}." for b in banned))]
        assert (imported, calls & runs) == ([], set()), file


def test_without_its_packages_labeling_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['sqlalchemy'] = None; from tutelage.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "label", "status", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "tutelage: sqlalchemy is missing; labeling needs pip install 'tutelage[labeling]'\n"


def test_only_the_lab_knows_gold() -> None:
    """Evaluation and report know judges; gold beside proxy is what over-optimisation is drawn with (Gao 2022)."""
    files = [p for room in ("evaluation", "report") for p in (PACKAGE / room).iterdir() if p.is_file()]
    knowing = [p.name for p in files if "gold" in p.read_text(encoding="utf-8").lower()]
    assert sorted(knowing) == ["overoptimization.html.j2", "overoptimization.py"]


def test_only_models_are_looked_into() -> None:
    """A base model is called and a head's weight read in one room, so that what wraps a model sees every pass."""
    inside = {"base_model", "lm_head", "score", "last_hidden_state", "get_output_embeddings"}
    touched = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}: {node.attr}"
        for file in FILES
        if room_of(file) not in ("models", "labeling")  # where `score` is a screening test's
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in inside
    ]
    assert touched == []


def test_stages_name_no_engine_and_no_algorithm() -> None:
    """They open the one that the settings name."""
    names = {"LocalSampler", "PPO"}
    named = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}: {node.id}"
        for file in FILES
        if room_of(file) in ("stages", "evaluation", "training", "rewards")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and node.id in names
    ]
    assert named == []


# Functions of more than 60 lines or seven parameters, and why.
LONG = {
    "labeling/store/migrations/versions/0001_first.py:upgrade": "is the schema as it was, column by column",
    "models/cpu/attention.py:attention": "its parameters are transformers'",
    "objectives/policy.py:clipped_policy_loss": "an equation's terms",
    "models/logprobs.py:forward": "autograd takes everything flat",
    "models/logprobs.py:token_logprobs": "every architecture's head, each part by name",
}


def test_functions_are_short() -> None:
    long = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1  # type: ignore[operator]
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                parameters = [a.arg for a in arguments if a.arg not in ("self", "cls")]
                if lines > 60 or len(parameters) > 7:
                    long.add(f"{file.relative_to(PACKAGE)}:{node.name}")
    assert long == set(LONG)


def test_no_file_is_long() -> None:
    long = {str(f.relative_to(PACKAGE)): n for f in FILES if (n := len(f.read_text().splitlines())) > 500}
    assert not long
