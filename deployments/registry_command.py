"""What serves, since when, trained on what, by whose verdict: the command `python -m deployments.registry`.

It changes nothing.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.connection import masked
from deployments.errors import Failure, InputError

if TYPE_CHECKING:
    from deployments.registry import Registry, Version

EPILOG = """\
examples:
  python -m deployments.registry list --workspace redistill-demo
  python -m deployments.registry show champion --uri http://127.0.0.1:5000 --student helpdesk
  python -m deployments.registry show 3 --workspace redistill-demo --json
  python -m deployments.registry verify --workspace redistill-demo
  python -m deployments.registry verify 2 --workspace redistill-demo --log redistill-demo/traffic

exit codes: 0 done, 1 something is not what was registered or the registry failed, 2 bad use
(0 of verify: nothing differs; data that could not be read are named in its last line)
"""
SHOWN_ELSEWHERE = {
    "files", "sha256", "tokenizer_sha256", "window", "window_digest", "window_sha256", "retrain_id", "teacher",
    "verdict", "base_champion", "trained", "profiled", "code_revision", "replaced", "rolled_back_at", "rollback_reason",
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        from deployments.registry import opened

        uri = given.uri or os.environ.get("MLFLOW_TRACKING_URI") or _local(given.workspace)
        code: int = given.run(opened(uri, given.student, given.timeout), given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (Failure, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.registry",
        description="Look into the registry of a student; nothing is changed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|show|verify")
    run: Callable[[Registry, argparse.Namespace], int]
    for run, text in (
        (_list, "all versions: alias, since when it serves or when it did, verdict, window"),
        (_show, "one version: what it is, since when it serves, trained on what, by whose verdict, lineage, hashes"),
        (_verify, "read every file of a version, and its data, and compare their hashes with the tags"),
    ):
        command = commands.add_parser(run.__name__[1:], help=text, description=text, allow_abbrev=False)
        if run is not _list:
            command.add_argument(
                "version", nargs="?", default="champion", metavar="VERSION", help="number or alias (default: champion)"
            )
        if run is _verify:
            command.add_argument("--log", help="request log, folder or URL, whose window is to be compared as well")
        command.add_argument(
            "--uri",
            default="",
            help="sqlite:///FILE or http(s)://HOST:PORT (default: $MLFLOW_TRACKING_URI, else WORKSPACE/mlflow.db)",
        )
        command.add_argument(
            "--workspace",
            default=os.environ.get("REDISTILL_WORKSPACE", ""),
            help="folder of the runs (default: $REDISTILL_WORKSPACE)",
        )
        command.add_argument(
            "--student",
            default=os.environ.get("REDISTILL_STUDENT__NAME", ""),
            help="name in the registry (default: $REDISTILL_STUDENT__NAME, else the only one)",
        )
        command.add_argument("--timeout", type=_seconds, default=10.0, help="of a registry that does not answer [s]")
        command.add_argument("--json", action="store_true", help="print the result as one JSON object")
        command.set_defaults(run=run)
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:  # nan, inf: no thread waits that long
        raise argparse.ArgumentTypeError(f"{text} is no time to wait: give seconds, more than 0 and less than 1e6")
    return value


def _local(workspace: str) -> str:
    if not workspace:
        raise InputError("which registry? give --workspace FOLDER or --uri, or set REDISTILL_WORKSPACE")
    return f"sqlite:///{Path(workspace).expanduser().absolute() / 'mlflow.db'}"


def _list(registry: "Registry", given: argparse.Namespace) -> int:
    aliases, served = registry.aliased(), _served(registry)
    found: list[dict[str, Any]] = [
        {
            "version": each.version,
            "aliases": sorted(alias for alias, version in aliases.items() if version == each.version),
            "served": served.get(each.version, []),
            "verdict": each.tags.get("verdict", ""),
            "window": each.tags.get("window", ""),
            "retrain_id": each.tags.get("retrain_id", ""),
            "created": each.created.isoformat(timespec="seconds"),
        }
        for each in registry.versions()
    ]
    if given.json:
        return _json({"student": registry.student, "uri": masked(registry.uri), "versions": found})
    head = ("version", "alias", "served [UTC]", "verdict", "window", "retrain", "created")
    rows = [
        (
            each["version"], ", ".join(each["aliases"]), "\n".join(map(_span, each["served"])), each["verdict"],
            each["window"], each["retrain_id"], each["created"][:16],
        )
        for each in found
    ]  # fmt: skip
    _print(head, rows)
    return 0


def _show(registry: "Registry", given: argparse.Namespace) -> int:
    version = _chosen(registry, given.version)
    told = _told(registry, version)
    if given.json:
        return _json(told)
    rows = []
    for name, value in told.items():
        if name == "served":
            value = "\n".join(map(_span, value)) or "never"
        elif name == "approval" and not value:
            value = "not approved"
        elif isinstance(value, Mapping):
            value = "\n".join(f"{key}  {text}" for key, text in value.items())
        elif isinstance(value, list):
            value = "\n".join(value)
        if value:
            rows.append((name.replace("_", " "), str(value)))
    _print((f"student {registry.student}", f"version {version.version}"), rows)
    return 0


def _told(registry: "Registry", version: "Version") -> dict[str, Any]:
    """Everything the registry knows of a version."""
    tags = version.tags
    return {
        "student": registry.student,
        "version": version.version,
        "aliases": sorted(alias for alias, number in registry.aliased().items() if number == version.version),
        "served": _served(registry).get(version.version, []),
        "created": version.created.isoformat(timespec="seconds"),
        "verdict": tags.get("verdict", ""),
        "approval": {key: text for key, text in sorted(tags.items()) if key.startswith(("approv", "refused"))},
        "rolled_back": {key: tags[key] for key in ("rolled_back_at", "rollback_reason") if key in tags},
        "retrain_id": tags.get("retrain_id", ""),
        "mlflow_run": version.run_id,
        "teacher": tags.get("teacher", ""),
        "trained_on": _parsed(tags, "trained", list),
        "window_digest": tags.get("window_digest", ""),
        "window_sha256": tags.get("window_sha256", ""),
        "profiled_on": _parsed(tags, "profiled", list),
        "lineage": _lineage(registry, version),
        "code_revision": tags.get("code_revision", ""),
        "sha256": tags.get("sha256", ""),
        "tokenizer_sha256": tags.get("tokenizer_sha256", ""),
        "files": _parsed(tags, "files", dict),
        "other_tags": {
            key: text
            for key, text in sorted(tags.items())
            if key not in SHOWN_ELSEWHERE and not key.startswith(("approv", "refused", "mlflow."))
        },
    }


def _parsed(tags: Mapping[str, str], name: str, kind: type[list[str]] | type[dict[str, str]]) -> Any:
    """A tag that holds texts as JSON; a damaged one as it is."""
    text = tags.get(name)
    if text is None:
        return kind()
    try:
        found = json.loads(text)
    except ValueError:
        return text
    if not isinstance(found, kind):
        return text
    parts = found.values() if isinstance(found, dict) else found
    return found if all(isinstance(part, str) for part in parts) else text


def _verify(registry: "Registry", given: argparse.Namespace) -> int:
    from deployments.data import UNREAD, changed_data
    from deployments.verification import differences

    version = _chosen(registry, given.version)
    with tempfile.TemporaryDirectory() as nowhere:  # not the workspace's own copy: it may be in use
        folder = registry.fetch(version.version, Path(nowhere))
        wrong = differences(folder, version.tags)
    data = changed_data(version.tags, Path(given.workspace) / "runs" if given.workspace else None, given.log)
    wrong += [f"{place}: {said}" for place, said in data.items() if said.startswith("changed")]
    unread = [f"{place}: {said.removeprefix(UNREAD)}" for place, said in data.items() if said.startswith(UNREAD)]
    if given.json:
        told = {"differences": wrong, "data": data, "data_verified": not unread}
        _json({"version": version.version, "checkpoint": str(folder), **told})
    else:
        files = len(json.loads(version.tags.get("files", "{}")))
        print(f"version {version.version} of {registry.student} at {folder}: {files or 'all'} files read")
        for place, said in data.items():
            print(f"{place}: {said}")
        for said in wrong:
            print(f"differs: {said}")
        print(_summed_up(wrong, unread, len(data)))
    return 1 if wrong else 0


def _summed_up(wrong: Sequence[str], unread: Sequence[str], places: int) -> str:
    """The last line: what was not read is not what was registered."""
    if wrong:
        return f"{len(wrong)} differences"
    if not unread:
        return "all of this is what was registered"
    part = "in part " if len(unread) < places else ""
    return f"files as registered; data {part}NOT verified ({'; '.join(unread)})"


def _chosen(registry: "Registry", asked: str) -> "Version":
    aliases = registry.aliased()
    known = [version.version for version in registry.versions()]
    number = aliases.get(asked, asked)
    if number not in known:
        raise InputError(
            f"student {registry.student!r} has no version {asked!r}: it has {', '.join(known) or 'none'}, and the "
            f"aliases {', '.join(sorted(aliases)) or 'none'}"
        )
    return registry.get(number)


def _served(registry: "Registry") -> dict[str, list[list[str]]]:
    """Version -> stretches [since, until, why] in which it was the champion; until is "" while it serves."""
    champion = registry.aliased().get("champion")
    moves = [move for move in registry.moves() if move.done and not move.undone]
    served: dict[str, list[list[str]]] = {}
    ends = [*(move.at for move in moves[1:]), ""]
    for move, end in zip(moves, ends, strict=False):
        why = f"{move.what}{f': {move.reason}' if move.reason else ''}"
        served.setdefault(move.to, []).append([move.at, end, why])
    if champion is not None and (not moves or moves[-1].to != champion):
        served.setdefault(champion, []).append(["", "", "set by hand, or by an earlier redistill"])
        if moves:
            served[moves[-1].to][-1][1] = "?"
    return served


def _span(stretch: Sequence[str]) -> str:
    since, until, why = stretch
    return f"{since[:16] or '?'} .. {until[:16] or 'now'} ({why})"


def _lineage(registry: "Registry", version: "Version") -> list[str]:
    """The version, the champion it was trained from, that one's, ... to the first."""
    known = {each.version: each for each in registry.versions()}
    line, base = [version.version], version.tags.get("base_champion", "")
    while base and base not in line:
        line.append(base)
        base = known[base].tags.get("base_champion", "") if base in known else ""
    return [number if number in known else f"{number} (deleted)" for number in line]


def _json(value: Mapping[str, Any]) -> int:
    print(json.dumps(value, indent=1, allow_nan=False))
    return 0


def _print(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for cells in rows:
        table.add_row(*(escape(cell) for cell in cells))  # brackets in them are text, no markup
    Console(width=None if Console().is_terminal else 150).print(table)
