"""The command line: one thin command per verb. Settings are parsed and checked before torch is imported.

Every stage takes `--config FILE` (YAML) and one option per setting; options win over the file. A user's mistake ends
with one line and exit code 2, never with a traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from tutelage import __version__
from tutelage.recipe import BASE, RECIPES, STAGES, plan, recipe_path, run_recipe
from tutelage.runs import done
from tutelage.settings.common import Count, Number, Seed, nearest
from tutelage.settings.options import Parser, add_settings, checked, is_list, settings
from tutelage.settings.sampler import LocalSampling
from tutelage.terminal import message, printable

LABELING = {"sqlalchemy", "alembic", "fastapi", "uvicorn", "multipart", "pwdlib", "markdown_it", "nh3"}
BENCHMARKS = {"sacrebleu", "rouge_score", "py3langid"}
EXTRAS = {  # packages, and the extras that bring them
    **dict.fromkeys(LABELING, "labeling"), **dict.fromkeys(BENCHMARKS, "benchmarks"), "peft": "lora",
    "lm_eval": "lm-eval",
}  # fmt: skip
NEEDS = {"lora": "an adapter", "benchmarks": "this benchmark or metric", "lm-eval": "lm-eval"}
INTRODUCTION = """\
Train language models to follow instructions with human feedback (InstructGPT), from demonstrations and rankings to an
aligned policy and a report.

  tutelage demo                         the whole recipe in miniature, in minutes, nothing downloaded
  tutelage run recipe.yaml --output X   the stages of your own recipe, in order
  tutelage label serve WORKSPACE        people write, rate and rank in the browser
  tutelage chat runs/demo/ppo/model     talk to what came out
"""


def build(verb: str | None) -> Parser:
    """The parser; the settings of a stage are added only for the verb in use, so that help stays fast."""
    parser = Parser(prog="tutelage", description=INTRODUCTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"tutelage {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", parser_class=Parser)

    demo = verbs.add_parser("demo", help="the whole recipe in miniature, with its report")
    _run_options(demo, Path("runs/demo"))
    demo.add_argument(
        "--from-scratch", action="store_true", help="pretrain the base model too, instead of using the shipped one"
    )

    run = verbs.add_parser("run", help="run a recipe's stages in order, skipping what is done and unchanged")
    ours = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    run.add_argument("recipe", help=f"a YAML file, or one of the package: {ours}")
    run.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="given",
        help="an input that the recipe asks for, or a stage's setting, as sft.epochs=2; may be repeated",
    )  # fmt: skip
    _run_options(run, None)

    for name, stage in STAGES.items():
        command = verbs.add_parser(name, help=stage.help, description=stage.help)
        if name == verb:
            kind = stage.config_class()
            command.description = (kind.__doc__ or stage.help).strip()
            add_settings(command, kind)
            if kind.POSITIONAL:
                command.add_argument(
                    kind.POSITIONAL, nargs="*" if is_list(kind.model_fields[kind.POSITIONAL]) else "?",
                    default=argparse.SUPPRESS, metavar=kind.POSITIONAL.upper(), help=f"the same as --{kind.POSITIONAL}",
                )  # fmt: skip

    label = verbs.add_parser("label", help="people's work: serve it, queue it, export it")
    if verb == "label":
        from tutelage.labeling.cli import add_commands

        add_commands(label.add_subparsers(dest="act", metavar="COMMAND", parser_class=Parser, required=True))

    chat = verbs.add_parser("chat", help="talk to a model in the terminal")
    chat.add_argument("model", help="model folder, hub id, or `base`, the shipped model")
    chat.add_argument("--temperature", type=checked(Number), default=1.0, help="0 is greedy (default: 1)")
    chat.add_argument(
        "--max-new-tokens", type=checked(Count), default=128, help="most tokens of an answer (default: 128)"
    )
    chat.add_argument("--seed", type=checked(Seed), default=0, help="seed of the first answer (default: 0)")

    compare = verbs.add_parser("compare", help="answers of several models to the same prompts, side by side")
    compare.add_argument("models", nargs="+", help="model folders, hub ids, or `base`, the shipped model")
    compare.add_argument("--prompts", required=True, help="prompts in any accepted format")
    compare.add_argument("--reward-model", help="score every answer, and count wins against the first model")
    compare.add_argument("--limit", type=checked(Count), default=10, help="prompts to show (default: 10)")
    compare.add_argument("--temperature", type=checked(Number), default=1.0, help="0 is greedy (default: 1)")
    compare.add_argument(
        "--max-new-tokens", type=checked(Count), default=128, help="most tokens of an answer (default: 128)"
    )
    compare.add_argument("--seed", type=checked(Seed), default=0, help="seed of the answers (default: 0)")
    return parser


def _run_options(parser: argparse.ArgumentParser, output: Path | None) -> None:
    shown = f"default: {output}" if output else "required"
    parser.add_argument(
        "--output", type=Path, default=output, required=output is None, help=f"folder of the run folders ({shown})"
    )
    parser.add_argument("--seed", type=checked(Seed), default=0, help="seed of every stage that sets none (default: 0)")
    parser.add_argument(
        "--algorithms", type=lambda text: text.split(","),
        help="which of the recipe's algorithms to run, as ppo,rloo,dpo,best_of_n (default: those that it names)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace runs made with other settings or inputs")
    parser.add_argument(
        "--dry-run", action="store_true", help="check all that can be known before the first step, and write nothing"
    )


def _dashed(word: str) -> str:
    """An option with dashes: settings have underscores in files, and people type them here, too."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"command line: --set {text}: expected NAME=VALUE")
    return name, value


def dispatch(arguments: argparse.Namespace) -> None:
    """Run the verb."""
    match arguments.verb:
        case "demo":
            output, seed, overwrite, dry_run = arguments.output, arguments.seed, arguments.overwrite, arguments.dry_run
            base = BASE
            if arguments.from_scratch:
                folder = output / "pretraining"
                run_recipe(plan(recipe_path("base"), folder, seed, overwrite), folder, dry_run)
                base = BASE if dry_run else output / "pretraining" / "base" / "model"
            steps = plan(recipe_path("demo"), output, seed, overwrite, base, algorithms=arguments.algorithms)
            run_recipe(steps, output, dry_run)
        case "run":
            recipe, given = recipe_path(arguments.recipe), dict(_pair(pair) for pair in arguments.given)
            steps = plan(
                recipe, arguments.output, arguments.seed, arguments.overwrite, given=given,
                algorithms=arguments.algorithms,
            )  # fmt: skip
            run_recipe(steps, arguments.output, arguments.dry_run)
        case "label":
            from tutelage.labeling.cli import run

            run(arguments)
        case "chat":
            from tutelage.evaluation.chat import chat

            sampling = LocalSampling(temperature=arguments.temperature, max_new_tokens=arguments.max_new_tokens)
            chat(arguments.model, sampling, arguments.seed)
        case "compare":
            from tutelage.evaluation.compare import compare

            a = arguments
            sampling = LocalSampling(temperature=a.temperature, max_new_tokens=a.max_new_tokens)
            compare(a.models, a.prompts, a.reward_model, a.limit, sampling, a.seed)
        case verb:
            if verb == "report" and arguments.runs and not arguments.output and not arguments.config:
                arguments.output = str(Path(arguments.runs[0]) / "report")
            stage = STAGES[verb]
            config = settings(stage.config_class(), arguments)
            before = done(config.output)
            whole = stage.run(config)
            if config.dry_run:
                print("dry run: nothing was written" + ("; it is done already" if whole else ""))
            else:
                already = before is not None and done(config.output) == before
                print(f"{printable(str(config.output))}{' (done already)' if already else ''}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0, or 2 for a user's mistake, or 130 when interrupted."""
    argv = [_dashed(word) for word in (sys.argv[1:] if argv is None else argv)]
    warnings.showwarning = lambda text, kind, *place: print(f"{kind.__name__}: {message(text)}", file=sys.stderr)
    verb = next((a for a in argv if not a.startswith("-")), None)
    try:
        parser = build(verb)
        if verb is None and not argv:
            parser.print_help()
            return 0
        arguments, unknown = parser.parse_known_args(argv)
        if unknown or arguments.verb is None:
            used = parser._subparsers._group_actions[0].choices[verb] if verb else parser  # type: ignore[union-attr,index]
            known = [name for action in used._actions for name in action.option_strings]
            if not unknown:
                parser.error("a command is wanted")
            raise ValueError(f"unknown option {unknown[0]!r}; {nearest(unknown[0].split('=')[0], known)}")
        dispatch(arguments)
    except ValueError as error:
        print(f"tutelage: {message(error)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (package := (error.name or "").split(".")[0]) not in EXTRAS:
            raise
        extra = EXTRAS[package]
        what = NEEDS.get(extra, extra)
        print(f"tutelage: {package} is missing; {what} needs pip install 'tutelage[{extra}]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        text = "tutelage: interrupted; the same command goes on from the last checkpoint, if one was written"
        print(text, file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # no permission, no space, a folder where a file should be
        print(f"tutelage: {message(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        words = ("out of memory", "allocate memory")  # torch has no one class for it
        if not isinstance(error, MemoryError) and not any(each in str(error) for each in words):
            raise
        print(
            "tutelage: out of memory; the same command goes on from the last checkpoint, so repeat it with a smaller "
            "micro_batch_tokens, which changes no result, or with a smaller batch or model",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
