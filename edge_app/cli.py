"""The `edge-app` command: arguments in, exit code out; `subcommands` does what they ask for.

Results go to stdout, logs and progress to stderr.
"""

from __future__ import annotations

import argparse
import io
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_app import __version__, subcommands
from edge_app.errors import EXIT_OK, EXIT_USAGE, ConfigError, EdgeAppError
from edge_app.service.journal import log_to_journal

log = logging.getLogger(__name__)

DEFAULT_CONFIG = Path("/etc/edge-app/config.toml")
BACKENDS = ("auto", "edgetpu", "cpu")

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; see `errors` for what the codes mean."""
    args = _parser().parse_args(arguments)
    level = logging.DEBUG if args.verbose else logging.INFO
    in_journal = log_to_journal(level)
    if not in_journal:
        logging.basicConfig(
            level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
        )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be valid text
    command: Command = args.command
    try:
        return command(args)
    except EdgeAppError as error:
        _explain(error, in_journal=in_journal)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _explain(error: EdgeAppError, *, in_journal: bool) -> None:
    faults = error.faults if isinstance(error, ConfigError) else ()
    lines = [str(error), *(f"  {fault}" for fault in faults)]
    if error.hint:
        lines.append(f"hint: {error.hint}")
    if in_journal:
        fields = {"edge_event": error.kind, "edge_camera": error.camera}
        log.error("%s", "\n".join(lines), extra=fields)
    else:
        print("edge-app: " + "\n".join(lines), file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-app",
        description="A camera appliance: int8 MobileNet on Coral or CPU, labels over MQTT.",
    )
    parser.add_argument("--version", action="version", version=f"edge-app {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what helps in a search")
    parser.set_defaults(command=_helping(parser))
    commands = parser.add_subparsers(metavar="COMMAND")
    _add_running(commands)
    _add_classify(commands)
    _add_models(commands)
    _add_bench(commands)
    _add_config(commands)
    _verbose_after(commands)
    return parser


_Subparsers = argparse._SubParsersAction


def _helping(parser: argparse.ArgumentParser) -> Command:
    """Return what is done when the command is missing: say which there are."""

    def show(_: argparse.Namespace) -> int:
        parser.print_help(sys.stderr)
        return EXIT_USAGE

    return show


def _verbose_after(commands: _Subparsers[argparse.ArgumentParser]) -> None:
    """Take `-v` behind a command too; unless it stands there, what was said before it holds."""
    for parser in commands.choices.values():
        parser.add_argument(
            "-v",
            "--verbose",
            action="store_true",
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                _verbose_after(action)


def _add_running(commands: _Subparsers[argparse.ArgumentParser]) -> None:
    run = commands.add_parser("run", help="be the appliance")
    _config_option(run)
    run.add_argument(
        "--forget", action="store_true", help="empty what this device left on the broker, and end"
    )
    run.set_defaults(command=subcommands.run)

    demo = commands.add_parser("demo", help="the appliance on sample photos, nothing to set up")
    demo.add_argument("--seconds", type=_positive, help="end after so many seconds")
    demo.set_defaults(command=subcommands.demo)

    watch = commands.add_parser("watch", help="live view of one device or a fleet")
    watch.add_argument("device", nargs="?", default="+", help="device id (default: all)")
    watch.add_argument("--seconds", type=_positive, help="end after so many seconds")
    _config_option(watch)
    watch.set_defaults(command=subcommands.watch)

    _add_health(commands)
    doctor = commands.add_parser("doctor", help="check everything, and say what to do")
    doctor.add_argument("--json", action="store_true", help="one JSON object a line")
    _config_option(doctor)
    doctor.set_defaults(command=subcommands.doctor)


def _add_health(commands: _Subparsers[argparse.ArgumentParser]) -> None:
    health = commands.add_parser("health", help="does the service work, as seen from outside?")
    health.add_argument("--unit", default="edge-app.service", help='systemd unit; "": do not ask')
    health.add_argument("--seconds", type=_positive, help="give up then (default: heartbeat + 60)")
    health.add_argument("--watch-s", type=float, default=0.0, help="watch for restarts so long")
    health.add_argument("--backend", choices=("cpu", "edgetpu"), default="", help="must compute")
    health.add_argument("--baseline", type=Path, metavar="FILE", help="its best p95 so far")
    health.add_argument("--slower-by", type=_positive, default=2.0, help="allowed factor of it")
    health.add_argument("--no-result", action="store_true", help="a report is enough")
    health.add_argument("--json", action="store_true")
    _config_option(health)
    health.set_defaults(command=subcommands.health)


def _add_classify(commands: _Subparsers[argparse.ArgumentParser]) -> None:
    classify = commands.add_parser("classify", help="say what image files show")
    classify.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    classify.add_argument("--model", default="mobilenet_v2_1.0_224", help="name or .tflite path")
    classify.add_argument("--labels", default="", help="labels file, when the model is a path")
    classify.add_argument("--top-k", type=_count, default=3)
    classify.add_argument("--backend", choices=BACKENDS, default="auto")
    classify.add_argument("--json", action="store_true", help="one JSON object a line")
    classify.set_defaults(command=subcommands.classify)


def _add_models(commands: _Subparsers[argparse.ArgumentParser]) -> None:
    models = commands.add_parser("models", help="the catalogue of models")
    models.set_defaults(command=_helping(models))
    actions = models.add_subparsers(metavar="ACTION")

    listing = actions.add_parser("list", help="what there is, and what is installed")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(command=subcommands.models_list)

    inspect = actions.add_parser("inspect", help="cost and structure, layer by layer")
    inspect.add_argument("model", help=".tflite path, catalogue name, or mobilenet_v1_0.5_160")
    inspect.add_argument("--json", action="store_true")
    inspect.add_argument("--plot", type=Path, metavar="FILE.png")
    inspect.set_defaults(command=subcommands.models_inspect)

    verify = actions.add_parser("verify", help="does a model behave as its passport says?")
    verify.add_argument("model", nargs="?", help="default: every installed one")
    verify.add_argument("--json", action="store_true")
    verify.set_defaults(command=subcommands.models_verify)

    fetch = actions.add_parser("fetch", help="download a catalogued model")
    fetch.add_argument("model")
    fetch.add_argument(
        "--trust-on-first-use",
        action="store_true",
        help="accept a file whose hash the catalogue does not know, and hold it to this one later",
    )
    fetch.add_argument(
        "--from", dest="source", default="", metavar="PLACE", help="a mirror's URL, or a folder"
    )
    fetch.set_defaults(command=subcommands.models_fetch)

    add = actions.add_parser("add", help="write a passport for a model of your own")
    add.add_argument("path", type=Path)
    add.add_argument("--labels", type=Path, required=True)
    add.add_argument(
        "--image", type=Path, action="append", required=True, help="golden image; repeatable"
    )
    add.add_argument("--name", help="default: the file's; one added under it before is replaced")
    add.set_defaults(command=subcommands.models_add)


def _add_bench(commands: _Subparsers[argparse.ArgumentParser]) -> None:
    bench = commands.add_parser("bench", help="measure this machine")
    bench.add_argument("--models", type=_names, metavar="A,B,C", help="latency against MACs")
    bench.add_argument("--plot", type=Path, metavar="FILE.png", help="with --models")
    bench.add_argument("--seconds", type=_positive, help="of each part, default 10")
    bench.add_argument("--json", action="store_true")
    bench.set_defaults(command=subcommands.bench)


def _add_config(commands: _Subparsers[argparse.ArgumentParser]) -> None:
    config = commands.add_parser("config", help="check, show or describe the configuration")
    config.set_defaults(command=_helping(config))
    actions = config.add_subparsers(metavar="ACTION")
    for name, command, text in (
        ("check", subcommands.config_check, "list everything that is wrong"),
        ("show", subcommands.config_show, "print the effective values, secrets hidden"),
    ):
        action = actions.add_parser(name, help=text)
        _config_option(action)
        action.set_defaults(command=command)
    schema = actions.add_parser("schema", help="print the JSON Schema")
    schema.set_defaults(command=subcommands.config_schema)


def _config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        default=DEFAULT_CONFIG,
        metavar="FILE",
        help=f"default: {DEFAULT_CONFIG}",
    )


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"found {text}, allowed: a number above 0")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text}, allowed: a whole number from 1")
    return int(text)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]
