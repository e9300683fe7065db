"""The command line: one thin command per verb. Settings are parsed and checked before torch is imported.

Every stage takes `--config FILE` (YAML) and one option per setting; options win over the file. A user's mistake ends
with one line and exit code 2, never with a traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tutelage import __version__
from tutelage.recipe import RECIPES, STAGES, recipe_path, run_recipe
from tutelage.runs import done
from tutelage.settings.common import C, Count, Number, Seed, groups_of, make, nearest, put
from tutelage.settings.sampler import LocalSampling
from tutelage.settings.strict_yaml import parse_yaml, read_yaml
from tutelage.shipped import BASE
from tutelage.terminal import message, printable, short

LABELING = {"sqlalchemy", "alembic", "fastapi", "uvicorn", "multipart", "pwdlib", "markdown_it", "nh3"}  # an extra's
INTRODUCTION = """\
Train language models to follow instructions with human feedback (InstructGPT), from demonstrations and rankings to an
aligned policy and a report.

  tutelage demo                         the whole recipe in miniature, in minutes, nothing downloaded
  tutelage run recipe.yaml --output X   the stages of your own recipe, in order
  tutelage label serve WORKSPACE        people write, rate and rank in the browser
  tutelage chat runs/demo/ppo/model     talk to what came out
"""


Port = typing.Annotated[int, Field(ge=0, le=65535)]


class Parser(argparse.ArgumentParser):
    """argparse that names the nearest option when one is unknown."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> typing.NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def add_settings(parser: argparse.ArgumentParser, kind: type[BaseModel]) -> None:
    """One option per field of a config, its docstring as help. Values are read as YAML and checked by the config."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file of settings; options on the line win over it"
    )
    places = {
        name: parser.add_argument_group(name, (field.description or "").replace("%", "%%"))
        for name, field in kind.model_fields.items()
        if groups_of(field)
    }
    for name, field, preset in _options(kind):
        place = places.get(name.split(".")[0], parser)
        flag = "--" + name.removesuffix(".name").replace("_", "-")
        default = "required" if preset is PydanticUndefined else f"default: {_shown(preset)}"
        text = f"{field.description} ({default})".replace("%", "%%")
        if field.annotation is bool:
            place.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif typing.get_origin(field.annotation) is dict:
            place.add_argument(flag, dest=name, action="append", metavar="NAME=VALUE", help=text)
        else:
            place.add_argument(flag, dest=name, metavar=_metavar(field.annotation), help=text)


def _options(kind: type[BaseModel]) -> Iterator[tuple[str, FieldInfo, Any]]:
    """Each setting's name, field and default, those of groups in their place; the defaults are this stage's."""
    for name, field in kind.model_fields.items():
        preset = field.get_default(call_default_factory=True)
        if not groups_of(field):
            yield name, field, preset
        for group in groups_of(field):
            for inner, each in group.model_fields.items():
                yield f"{name}.{inner}", each, getattr(preset, inner, each.default)


def _checked(kind: Any) -> Callable[[str], Any]:
    """An option's type out of a setting's, which has its range."""

    def read(text: str) -> Any:
        try:
            return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False)).validate_python(text)
        except ValidationError as error:
            raise argparse.ArgumentTypeError(f"{short(text)}: {error.errors()[0]['msg']}") from None

    return read


def _shown(default: Any) -> str:
    """A default as it would be typed."""
    return ",".join(map(str, default)) or "[]" if isinstance(default, list | tuple) else str(default)


def _set(annotation: Any) -> Any:
    """A setting's type where it is set: without the None of those that need not be, and what Annotated adds."""
    optional = typing.get_origin(annotation) in (types.UnionType, typing.Union)  # the latter of annotated types
    kind = typing.get_args(annotation)[0] if optional else annotation
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def _metavar(annotation: Any) -> str:
    annotation = _set(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return "{" + ",".join(map(str, typing.get_args(annotation))) + "}"
    if origin in (list, tuple):
        return "A,B"
    return str(getattr(origin or annotation, "__name__", "value")).upper()


def settings(kind: type[C], arguments: argparse.Namespace) -> C:
    """The config from file and options."""
    values = read_yaml(arguments.config) if arguments.config else {}
    source = str(arguments.config or "command line")
    for name, field, _ in _options(kind):
        given = getattr(arguments, name)
        if isinstance(given, list):
            put(values, name, _mapping(name, given))
        elif given is not None:
            # A path or name is taken as typed, a list as a,b; all else is a YAML value, as in a recipe.
            annotation = _set(field.annotation)
            text = annotation in (str, Path)
            if typing.get_origin(annotation) in (list, tuple) and not given.lstrip().startswith("["):
                given = f"[{given}]"
            put(values, name, given if text or not isinstance(given, str) else _yaml(name, given))
    return make(kind, values, source)


def _yaml(name: str, given: str) -> Any:
    return parse_yaml(f"command line: {name}={short(given)}", given)


def _mapping(name: str, given: Sequence[str]) -> Any:
    """`a=x,b=y`, the option once or repeated; or a YAML mapping."""
    if len(given) == 1 and given[0].lstrip().startswith("{"):
        return _yaml(name, given[0])
    pairs: dict[str, str] = {}
    for pair in (pair for text in given for pair in text.split(",")):
        key, equals, value = pair.strip().partition("=")
        if not (key and equals and value) or key in pairs:
            fault = f"{key} is named twice" if key in pairs else "expected name=value, or name=value,name=value"
            raise ValueError(f"command line: {name}={pair!r}: {fault}")
        pairs[key] = value
    return pairs


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

    label = verbs.add_parser("label", help="people's work: serve it, queue it, export it")
    if verb == "label":
        _label_commands(label.add_subparsers(dest="act", metavar="COMMAND", parser_class=Parser, required=True))

    chat = verbs.add_parser("chat", help="talk to a model in the terminal")
    chat.add_argument("model", help="model folder, hub id, or `base`, the shipped model")
    chat.add_argument("--temperature", type=_checked(Number), default=1.0, help="0 is greedy (default: 1)")
    chat.add_argument(
        "--max-new-tokens", type=_checked(Count), default=128, help="most tokens of an answer (default: 128)"
    )
    chat.add_argument("--seed", type=_checked(Seed), default=0, help="seed of the first answer (default: 0)")

    compare = verbs.add_parser("compare", help="answers of several models to the same prompts, side by side")
    compare.add_argument("models", nargs="+", help="model folders, hub ids, or `base`, the shipped model")
    compare.add_argument("--prompts", required=True, help="prompts in any accepted format")
    compare.add_argument("--reward-model", help="score every answer, and count wins against the first model")
    compare.add_argument("--limit", type=_checked(Count), default=10, help="prompts to show (default: 10)")
    compare.add_argument("--temperature", type=_checked(Number), default=1.0, help="0 is greedy (default: 1)")
    compare.add_argument(
        "--max-new-tokens", type=_checked(Count), default=128, help="most tokens of an answer (default: 128)"
    )
    compare.add_argument("--seed", type=_checked(Seed), default=0, help="seed of the answers (default: 0)")
    return parser


def _label_commands(acts: Any) -> None:
    from tutelage.labeling.store.answers import KINDS
    from tutelage.labeling.store.intake import Rules

    def act(name: str, text: str) -> Parser:
        parser: Parser = acts.add_parser(name, help=text, description=text)
        parser.add_argument("workspace", type=Path, help="the workspace's folder")
        if name in ("prompts", "queue", "import", "erase"):
            parser.add_argument("--dry-run", action="store_true", help="say what it would do, and keep nothing of it")
        return parser

    serve = act("serve", "serve the workspace's pages, making it if it is not there; prints the owner's one-time link")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=_checked(Port), default=8080, help="port to listen on (default: 8080)")
    serve.add_argument(
        "--database", help="postgresql+psycopg://USER@HOST/NAME, remembered (default: SQLite in the workspace)"
    )

    invite = act("invite", "print a one-time link for a new person, or for a new password")
    invite.add_argument("--role", choices=["owner", "reviewer", "labeler"], help="default: labeler")
    invite.add_argument("--arm", choices=["training", "heldout"], help="heldout never trains (default: training)")
    invite.add_argument("--screening", action="store_true", help="let them do the screening tasks first")
    invite.add_argument("--name", help="somebody who is there, to set a new password")
    invite.add_argument(
        "--url", default="http://127.0.0.1:8080",
        help="where people reach the server (default: %(default)s, where `serve` listens unless told otherwise)",
    )  # fmt: skip

    prompts = act("prompts", "take prompts in by the paper's rules, and report what each rule dropped")
    prompts.add_argument("file", help="prompts, in any accepted format")
    prompts.add_argument(
        "--queue", action="append", choices=["demonstration", "labels"], default=[],
        help="queue such a task on every prompt taken",
    )  # fmt: skip
    prompts.add_argument("--output", type=Path, help="also write the prompts taken, with their splits, for `collect`")
    add_settings(prompts, Rules)

    queue = act("queue", "queue a file of candidates, answers or prompts as tasks")
    queue.add_argument("file", help="candidates.jsonl, answers.jsonl, or prompts in any accepted format")
    queue.add_argument("--kind", choices=list(KINDS), default="ranking", help="default: ranking")
    queue.add_argument(
        "--purpose", choices=["work", "screening", "gold"], default="work",
        help="rows of screening and gold items carry their answer, `ranks` or `annotations` (default: work)",
    )  # fmt: skip
    queue.add_argument("--baseline", help="for comparisons: the model that the others are compared with")
    queue.add_argument(
        "--arm", choices=["training", "heldout"],
        help="whose demonstrations, labels or comparisons (default: training; comparisons: heldout)",
    )  # fmt: skip
    queue.add_argument("--labelers", type=int, help="labelers for each task (default: 1)")
    queue.add_argument("--overlap", type=float, help="share of rankings with one more (default: 0.1)")
    queue.add_argument(
        "--no-rate", dest="rate", action="store_false", default=None, help="ask for ranks only, not for ratings"
    )

    act("import", "take in rankings with their labelers, as `export` writes them").add_argument("file", help="rankings")

    export = act("export", "write what labelers have answered, as the stages read it")
    export.add_argument("--output", type=Path, required=True, help="folder to write into")
    export.add_argument("--pairs", action="store_true", help="also chosen/rejected pairs of the training rankings")
    export.add_argument("--table", action="store_true", help="also one table for spreadsheets")

    act("erase", "remove all prompts by an author, and all that was written about them").add_argument(
        "--user", required=True, help="the author's id, as the prompts were taken in with"
    )
    act("status", "how much is done")
    act("backup", "write the whole workspace into one file, while people work").add_argument(
        "file", type=Path, help="the backup; a name that is not there yet"
    )
    text = "make a workspace of a backup"
    restore = acts.add_parser("restore", help=text, description=text)
    restore.add_argument("file", type=Path, help="what `backup` wrote")
    restore.add_argument("workspace", type=Path, help="the new workspace's folder")
    restore.add_argument(
        "--database", help="an empty database, postgresql+psycopg://USER@HOST/NAME (default: SQLite in the workspace)"
    )


def _label(arguments: argparse.Namespace) -> None:
    from tutelage.labeling.store.engines import in_words

    with in_words():
        _label_act(arguments)


def _label_act(arguments: argparse.Namespace) -> None:
    from tutelage.labeling import commands
    from tutelage.labeling.store.intake import Rules

    a = arguments
    match a.act:
        case "serve":
            commands.serve(a.workspace, a.host, a.port, a.database)
        case "invite":
            commands.invite(a.workspace, a.role, a.arm, a.screening, a.name, a.url)
        case "prompts":
            commands.take_prompts(a.workspace, a.file, settings(Rules, a), a.queue, a.output, a.dry_run)
        case "queue":
            request = commands.QueueRequest(
                a.file, a.kind, a.purpose, baseline=a.baseline, labelers=a.labelers, overlap=a.overlap, rate=a.rate,
                arm=a.arm,
            )  # fmt: skip
            commands.queue_file(a.workspace, request, a.dry_run)
        case "import":
            commands.import_file(a.workspace, a.file, a.dry_run)
        case "export":
            commands.export(a.workspace, a.output, a.pairs, a.table)
        case "erase":
            commands.erase(a.workspace, a.user, a.dry_run)
        case "status":
            commands.status(a.workspace)
        case "backup":
            commands.back_up(a.workspace, a.file)
        case "restore":
            commands.restore(a.file, a.workspace, a.database)


def _run_options(parser: argparse.ArgumentParser, output: Path | None) -> None:
    shown = f"default: {output}" if output else "required"
    parser.add_argument(
        "--output", type=Path, default=output, required=output is None, help=f"folder of the run folders ({shown})"
    )
    parser.add_argument(
        "--seed", type=_checked(Seed), default=0, help="seed of every stage that sets none (default: 0)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace runs made with other settings or inputs")
    parser.add_argument(
        "--dry-run", action="store_true", help="check all that can be known before the first step, and write nothing"
    )


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
                run_recipe(recipe_path("base"), output / "pretraining", seed, overwrite, dry_run=dry_run)
                base = BASE if dry_run else output / "pretraining" / "base" / "model"
            run_recipe(recipe_path("demo"), output, seed, overwrite, base, dry_run=dry_run)
        case "run":
            recipe, given = recipe_path(arguments.recipe), dict(_pair(pair) for pair in arguments.given)
            run_recipe(
                recipe, arguments.output, arguments.seed, arguments.overwrite, given=given, dry_run=arguments.dry_run
            )
        case "label":
            _label(arguments)
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
            stage = STAGES[verb]
            config = settings(stage.config_class(), arguments)
            before = done(config.output)
            whole = stage.run(config)
            if config.dry_run:
                print("dry run: nothing was written" + ("; it is done already" if whole else ""))
            else:
                print(f"{printable(str(config.output))}{' (done already)' if done(config.output) == before else ''}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0, or 2 for a user's mistake, or 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = lambda text, kind, *place: print(f"{kind.__name__}: {message(text)}", file=sys.stderr)
    verb = next((a for a in argv if not a.startswith("-")), None)
    try:
        parser = build(verb)
        if verb is None and not argv:
            parser.print_help()
            return 0
        arguments, extra = parser.parse_known_args(argv)
        if extra or arguments.verb is None:
            used = parser._subparsers._group_actions[0].choices[verb] if verb else parser  # type: ignore[union-attr,index]
            known = [name for action in used._actions for name in action.option_strings]
            if not extra:
                parser.error("a command is wanted")
            raise ValueError(f"unknown option {extra[0]!r}; {nearest(extra[0].split('=')[0], known)}")
        dispatch(arguments)
    except ValueError as error:
        print(f"tutelage: {message(error)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (package := (error.name or "").split(".")[0]) not in LABELING:
            raise
        print(f"tutelage: {package} is missing; labeling needs pip install 'tutelage[labeling]'", file=sys.stderr)
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
