"""Mutation tests: break the algorithms in hundreds of small ways, and see that a test fails each time.

    make mutate                         everything, from scratch
    make mutate ONLY=stages/online      files whose path has this in it

mutmut does the work; what it changes and which tests it runs stands in pyproject.toml. Mutants that no test kills must
be explained in tests/mutation-survivors.md, in the words that this script prints, or it fails.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import libcst
from jaxtyping import install_import_hook
from libcst.matchers import Arg, Attribute, Call, Decorator, Name, OneOf, matches
from mutmut.__main__ import cli
from mutmut.configuration import config
from mutmut.mutation import file_mutation
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.runners.harness import BadTestExecutionCommandsException, PytestRunner
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

EXPLAINED = Path(__file__).with_name("mutation-survivors.md")
WANTED = 0.9
DEAD = ("killed", "timeout", "segfault")
# mutmut leaves decorated functions alone, since a decorator might register what it is given. These register nothing.
HARMLESS = Decorator(
    OneOf(
        Call(Attribute(Name("torch"), OneOf(Name("no_grad"), Name("inference_mode")))),
        Name("once_differentiable"),
        Name("staticmethod"),
    )
)
STRICT = re.compile(r",\s*(strict=\w+)?(?=\))")  # of zip: a check of ourselves, which no right program can fail


def prepare_mutmut() -> None:
    """Let it change functions under harmless decorators, not a `strict` of zip, and count no failed start as a kill."""
    visitor = file_mutation.MutationVisitor
    skip, create = visitor._skip_node_and_children, visitor._create_mutations

    def skip_fewer(self: file_mutation.MutationVisitor, node: libcst.CSTNode) -> bool:
        if isinstance(node, libcst.FunctionDef) and node.decorators:
            return not all(matches(decorator, HARMLESS) for decorator in node.decorators)
        return matches(node, Arg(keyword=Name("strict"))) or skip(self, node)

    def create_fewer(self: file_mutation.MutationVisitor, node: libcst.CSTNode) -> None:
        before = len(self.mutations)
        create(self, node)
        self.mutations[before:] = [m for m in self.mutations[before:] if code(m.original_node) != code(m.mutated_node)]

    def code(node: libcst.CSTNode) -> str:
        return STRICT.sub("", libcst.Module([]).code_for_node(node))

    visitor._skip_node_and_children, visitor._create_mutations = skip_fewer, create_fewer
    run_tests = PytestRunner.run_tests

    def run_guarded(self: PytestRunner, *, mutant_name: str | None, tests: Iterable[str]) -> int:
        try:
            return run_tests(self, mutant_name=mutant_name, tests=tests)
        except BadTestExecutionCommandsException:
            return 35  # pytest did not even start: suspicious, not killed

    PytestRunner.run_tests = run_guarded


def change(name: str, path: Path) -> str:
    """What a mutant changed, as "`function`: `old` → `new`"."""
    lines = get_diff_for_mutant(name, path=path).splitlines()
    old, new = (
        " ".join(line[1:].strip() for line in lines if line.startswith(sign) and not line.startswith(3 * sign))
        for sign in "-+"
    )
    function = re.sub(r"^x_?(ǁ\w+ǁ)?|__mutmut_\d+$", "", name.rpartition(".")[2])
    return f"`{function}`: `{old}` → `{new}`"


def report(only: str) -> bool:
    """A line for each file, then what lives and has no explanation. Whether all is well."""
    explanations = EXPLAINED.read_text(encoding="utf-8") if EXPLAINED.exists() else ""
    total, dead, unexplained = 0, 0, []
    for path in sorted(walk_mutatable_files()):
        data = SourceFileMutationData(path=path)
        data.load()
        if only not in str(path) or not data.exit_code_by_key:
            continue
        status = {name: status_by_exit_code[code] for name, code in data.exit_code_by_key.items()}
        counts = Counter(status.values())
        here = sum(counts[each] for each in DEAD)
        print(f"{path}: {here} of {len(status)} mutants died, {100 * here / len(status):.1f} %  {dict(counts)}")
        total, dead = total + len(status), dead + here
        living = [change(name, path) for name, each in status.items() if each not in DEAD]
        unexplained += [f"{path} {text}" for text in living if text not in explanations]
    print(f"all: {dead} of {total} mutants died, {100 * dead / max(1, total):.1f} %")
    for text in unexplained:
        print(f"alive and unexplained: {text}")
    return dead >= WANTED * total and not unexplained


def main(only: str = "") -> None:
    prepare_mutmut()
    install_import_hook(
        ["tutelage.objectives", "tutelage.models.logprobs"], "beartype.beartype"
    )  # pytest's option, which works only once a process
    config().only_mutate = [str(path) for path in walk_mutatable_files() if only in str(path)]
    shutil.rmtree("mutants", ignore_errors=True)
    cli(["run", "--max-children", "2"], standalone_mode=False)
    sys.exit(0 if report(only) else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
