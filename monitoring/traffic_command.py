"""python -m monitoring.traffic import|window: fill and look at the request log."""

import argparse
import sys
import tomllib
from pathlib import Path

from pydantic import ValidationError
from tqdm import tqdm

from monitoring import rows
from monitoring.errors import Failure, InputError
from monitoring.importing import describe, import_file
from monitoring.settings import TrafficSettings
from monitoring.sources import FORMATS
from monitoring.traffic import read_window, span, window_digest
from monitoring.window import Window

_EXAMPLES = """\
examples:
  python -m monitoring.traffic import requests.parquet --log workspace/traffic
  python -m monitoring.traffic import titles.csv.gz --log workspace/traffic \\
      --map request_id=arxiv_id --map timestamp=date --map prompt=title --map reference=primary_cat
  python -m monitoring.traffic import calls.jsonl --log s3://bucket/traffic --map meta_queue=queue \\
      --ignore-extra
  python -m monitoring.traffic window workspace/traffic 2016-01-01..2017-01-01

times: ISO 8601 dates or datetimes, or seconds since 1970 (whole or not); without a time zone they are UTC.
bad rows (no id, a repeated one, no time, empty prompt, invalid UTF-8, ...) are kept in LOG/_rejects.
exit codes: 0 done, 2 bad input (the log is as it was), 1 the log could not be written.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m monitoring.traffic",
        description="Fill and look at the request log.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    load = commands.add_parser(
        "import", help="append a file to the log", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Append a CSV, JSONL or Parquet file to the request log: all good rows, or nothing.",
    )  # fmt: skip
    load.add_argument("source", help="file or fsspec URL; .gz, .bz2 and .xz are decompressed")
    load.add_argument("--log", help="folder or fsspec URL of the log; made when it is not there")
    load.add_argument(
        "--config",
        help="settings file: its [traffic] path and max_reject_share, its workspace (the environment is not read)",
    )
    load.add_argument(
        "--map", action="append", default=[], metavar="COLUMN=SOURCE_COLUMN", dest="mapping",
        help=f"where a column of the log comes from ({', '.join(rows.COLUMNS)}, meta_NAME); once for each. "
        "Columns that bear these names already need none",
    )  # fmt: skip
    load.add_argument("--format", choices=FORMATS, help="of the source; default: by its name")
    load.add_argument(
        "--max-reject-share", type=float, metavar="SHARE",
        help="fail and change nothing when more of the rows are bad [share], default: the settings file's, "
        f"or {TrafficSettings().max_reject_share}",
    )  # fmt: skip
    load.add_argument("--ignore-extra", action="store_true", help="leave out columns that are not mapped")
    show = commands.add_parser("window", help="count the rows of a window and print its digest")
    show.add_argument("log", help="folder or fsspec URL of the log")
    show.add_argument("window", metavar="START..END", help="ISO dates or datetimes, UTC, END not included")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        _import(given) if given.command == "import" else _show(given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Failure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _from_config(given: argparse.Namespace) -> None:
    """Fill in what the command line leaves open from the settings file, as the flows read it.

    Raises InputError when the file cannot be used or there is no log.
    """
    if given.config:
        try:
            values = tomllib.loads(Path(given.config).read_text("utf-8"))
            settings = TrafficSettings.model_validate(values.get("traffic", {}))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, ("traffic", *first["loc"])))
            raise InputError(f"{key} = {first['input']!r} in {given.config}: {first['msg']}") from error
        except (OSError, ValueError) as error:
            raise InputError(f"--config {given.config!r} cannot be used: {str(error).splitlines()[0]}") from error
        given.log = given.log or _log_of(Path(given.config).absolute(), settings.path, values.get("workspace", ""))
        if given.max_reject_share is None:
            given.max_reject_share = settings.max_reject_share
    if not given.log:
        raise InputError("--log is missing: name the log's folder, or a settings file with --config")


def _log_of(config: Path, path: str, workspace: object) -> str:
    """Return the log that a settings file names: relative folders are taken from where the file lies."""
    if "://" in path:
        return path
    if path:
        return str(config.parent / Path(path).expanduser())
    if not isinstance(workspace, str) or not workspace:
        raise InputError(f"workspace = {workspace!r} in {config}: name a folder there, or the log with --log")
    return str(config.parent / Path(workspace).expanduser() / "traffic")


def _import(given: argparse.Namespace) -> None:
    _from_config(given)
    mapping = dict(_pair(text) for text in given.mapping)
    if len(mapping) < len(given.mapping):
        raise InputError(f"--map: a column is given twice in {' '.join(given.mapping)}; each has one source")
    with tqdm(desc="import", delay=1, disable=None, bar_format="{l_bar}{bar}| {elapsed}<{remaining}") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = import_file(
            given.source, given.log, mapping=mapping, format=given.format,
            max_reject_share=given.max_reject_share, ignore_extra=given.ignore_extra, progress=progress,
        )  # fmt: skip
    print(f"accepted  {report.accepted}")
    print(f"rejected  {report.rejected}" + (f" ({describe(report.reasons)})" if report.reasons else ""))
    if report.rejects:
        print(f"rejects   {report.rejects}")
    if report.accepted:
        print(f"log spans {span(given.log)}")


def _pair(text: str) -> tuple[str, str]:
    column, separator, origin = text.partition("=")
    if not (separator and column and origin):
        raise InputError(f"--map {text!r} cannot be read; write COLUMN=SOURCE_COLUMN, such as prompt=question")
    return column, origin


def _show(given: argparse.Namespace) -> None:
    window = Window.parse(given.window)
    frame = read_window(given.log, window)
    print(f"window  {window}")
    print(f"rows    {len(frame)}")
    print(f"sha256  {window_digest(frame)}")
    if frame.empty:
        print(f"the log spans {span(given.log)}")
