"""The command lines of the flows: one option a setting, and errors as one line.

Exit codes: 0 done (promoted, held, rejected), 2 bad input and nothing was started, 1 failure.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

import deployments.errors
import deployments.text
import distill.errors
import monitoring.errors
from flows import settings
from monitoring.window import Window

BAD_INPUT = (
    settings.SettingsError,
    monitoring.errors.InputError,
    distill.errors.InputError,
    deployments.errors.InputError,
)
FAILURE = (monitoring.errors.Failure, distill.errors.Failure, deployments.errors.Failure, OSError)


class _Parser(argparse.ArgumentParser):
    """Says a mistake in one line, as everything here does."""

    def error(self, message: str) -> NoReturn:
        raise settings.SettingsError(f"{message}; --help lists the options")


def parser(program: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """Return a parser with --config and an option for every setting, with its unit and default."""
    arguments = _Parser(
        prog=f"python -m {program}",
        usage=f"python -m {program} [--config FILE] [option ...] [--TABLE.SETTING VALUE ...]",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    arguments.add_argument("--config", metavar="FILE", help="settings file, TOML (default: $REDISTILL_CONFIG)")
    groups: dict[str, Any] = {}
    for key, field in settings.setting_keys():
        table = key.split(".")[0] if "." in key else "settings"
        if table not in groups:
            described = settings.Settings.model_fields[table].annotation.__doc__ if table != "settings" else None
            groups[table] = arguments.add_argument_group(table, described)
        default = settings.shown_default(field).replace("%", "%%") or "empty"
        groups[table].add_argument(
            f"--{key}",
            dest=key,
            metavar=getattr(field.annotation, "__name__", "choice").upper().replace("TUPLE", "NAME,NAME"),
            help=f"{field.description} (default: {default})",
        )
    return arguments


def parse(arguments: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Return the parsed options; raises SettingsError with the nearest option for one that does not exist."""
    known, unknown = arguments.parse_known_args(argv)
    if unknown:
        options = [option for action in arguments._actions for option in action.option_strings]
        nearest = get_close_matches(unknown[0].split("=")[0], options, 1, 0.0)[0]
        raise settings.SettingsError(f"{unknown[0]!r} on the command line is no option; the nearest is {nearest}")
    return known


def text(given: str) -> str:
    """Return a text for the registry; raises ArgumentTypeError for one that it cannot keep."""
    if wrong := deployments.text.fault(given):
        raise argparse.ArgumentTypeError(f"what was given {wrong}")
    return given


def overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings given on the command line, nested."""
    given: dict[str, Any] = {}
    for key, _ in settings.setting_keys():
        value = getattr(arguments, key)
        if value is not None:
            *tables, name = key.split(".")
            table = given
            for part in tables:
                table = table.setdefault(part, {})
            table[name] = value
    return given


def check(chosen: settings.Settings, window: str | None = None) -> None:
    """Raise SettingsError or InputError for what can be seen to be wrong before anything is started."""
    if not chosen.workspace:
        raise settings.SettingsError(settings.NO_WORKSPACE)
    if window is not None:
        Window.parse(window)


class _WithoutOurTracebacks(logging.Filter):
    """Prefect logs the traceback of every exception; ours say in one line what is wrong, and `run` prints it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], (*BAD_INPUT, *FAILURE)):
            record.exc_info = None
        return True


def run(main: Callable[[Sequence[str]], int]) -> None:
    """Call a command's main and turn its errors into one line on stderr and an exit code."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_WithoutOurTracebacks())
    try:
        code = main(sys.argv[1:])
    except BAD_INPUT as error:
        code = _say(error, 2)
    except FAILURE as error:
        code = _say(error, 1)
    except RuntimeError as error:
        if "Failed to reach API" not in str(error):
            raise
        code = _say(f"{error}: start that Prefect server, or unset PREFECT_API_URL to do without one", 1)
    except KeyboardInterrupt:
        code = _say("stopped; the same command goes on from the last finished stage", 130)
    sys.exit(code)


def _say(error: object, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code
