"""`python -m distill.signals`: what lies in a store of teacher signals, and keeping it whole and small."""

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distill.errors import Failure, InputError
from distill.store import upkeep
from distill.store.places import Place, place_of

_EPILOG = """\
ROOT is a folder (WORKSPACE/signals by default) or an fsspec URL, as teacher.signals. All commands may run while
others read and write the store.

exit codes: 0 done, 1 damage was found or the work failed, 2 bad use

  python -m distill.signals stats redistill-demo/signals
  python -m distill.signals verify s3://bucket/signals --json
  python -m distill.signals compact redistill-demo/signals
  python -m distill.signals evict redistill-demo/signals --max-age 90 --max-bytes 20GiB --dry-run
"""
_UNITS = {"": 1, "B": 1, **{f"{p}B": 1000**n for n, p in enumerate("kMGT", 1)}, "KB": 1000}
_UNITS |= {f"{p}iB": 1024**n for n, p in enumerate("KMGT", 1)}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        if "://" not in given.root and not Path(given.root).is_dir():
            raise InputError(f"signal store {given.root!r}: there is no such folder")
        code: int = given.run(place_of(given.root), given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (Failure, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distill.signals",
        description="Look after a store of teacher signals.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="stats|verify|compact|evict")
    for run, text in (
        (_stats, "what is held: records, tokens, bytes a token and relative error of each format"),
        (_verify, "read every byte and name each file that is not what was written; nothing is changed"),
        (_compact, "rewrite many small shards as few large ones; records that lie there twice are kept once"),
        (_evict, "remove what was bought long ago, or what does not fit, least recently bought first"),
    ):
        command = commands.add_parser(run.__name__[1:], help=text, description=text, allow_abbrev=False)
        command.add_argument("root", metavar="ROOT", help="folder or fsspec URL of the store")
        command.add_argument("--json", action="store_true", help="print the result as one JSON object")
        command.set_defaults(run=run)
        if run is _compact:
            command.add_argument(
                "--target-bytes",
                type=_size,
                default=upkeep.TARGET,
                metavar="SIZE",
                help="size of a compacted shard [bytes, or with a unit: 64MiB]; default 256MiB",
            )
        if run is _evict:
            command.add_argument("--max-age", type=_days, metavar="DAYS", help="remove what was bought earlier [days]")
            command.add_argument(
                "--max-bytes", type=_size, metavar="SIZE", help="largest size of the store [bytes, or 20GiB, 500MB]"
            )
            command.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    return parser


def _stats(place: Place, given: argparse.Namespace) -> int:
    found = upkeep.stats(place)
    if given.json:
        return _json(found)
    print(f"{found['root']}: {found['shards']} shards, {_bytes(found['bytes'])}")
    rows = [
        (
            name,
            *(f"{each[column]:,}" for column in ("shards", "records", "prompt_tokens", "answer_tokens")),
            f"{each['bytes_per_token']:.1f}",
            f"{each['relative_error']['mean']:.2g} ({each['relative_error']['max']:.2g})" if "hidden" in name else "-",
            ", ".join(f"{kept} {tokens:,}" for kept, tokens in each["tokens_kept_as"].items()),
            f"{_date(each['bought']['first'])} .. {_date(each['bought']['last'])}",
        )
        for name, each in found["formats"].items()
    ]
    head = ("format", "shards", "records", "prompt tokens", "answer tokens", "B a token")
    _table((*head, "relative error (largest)", "tokens kept as", "bought"), rows)
    if found["bases"]["count"]:
        print(f"{found['bases']['count']} bases, {_bytes(found['bases']['bytes'])}")
    return 0


def _verify(place: Place, given: argparse.Namespace) -> int:
    count, damaged = upkeep.verify(place, _Progress("verify"))
    files = [{"file": each.path, "reason": each.reason, "remedy": each.remedy} for each in damaged]
    if given.json:
        _json({"root": place.root, "shards": count, "damaged": files})
    else:
        for each in damaged:
            print(f"damaged: {each}")
        print(f"{place.root}: {count} shards read, {len(damaged)} files damaged")
    return 1 if damaged else 0


def _compact(place: Place, given: argparse.Namespace) -> int:
    done = upkeep.compact(place, _Progress("compact"), given.target_bytes)
    if given.json:
        return _json({"root": place.root, **done})
    print(
        f"{place.root}: {done['shards_before']} shards are {done['shards_after']} now, "
        f"{done['duplicates']} records were there twice"
    )
    return 0


def _evict(place: Place, given: argparse.Namespace) -> int:
    age = None if given.max_age is None else given.max_age * upkeep.DAY
    done = upkeep.evict(place, _Progress("evict"), max_age=age, max_bytes=given.max_bytes, dry_run=given.dry_run)
    if given.json:
        return _json(done)
    rows = [
        (
            each["shard"],
            each["format"],
            f"{each['records']:,} of {each['of']:,}",
            f"{each['tokens']:,}",
            _bytes(each["bytes"]),
            f"{_date(each['bought']['first'])} .. {_date(each['bought']['last'])}",
        )
        for each in done["by_shard"]
    ]
    _table(("shard", "format", "records", "answer tokens", "size", "bought"), rows)
    print(
        f"{place.root}: {done['evicted']['records']:,} records, {_bytes(done['evicted']['bytes'])} "
        f"{'would go' if given.dry_run else 'went'}; "
        f"{done['kept']['records']:,} records, {_bytes(done['kept']['bytes'])} stay"
    )
    return 0


class _Progress:
    """Shards done, on standard error: in place on a terminal, else a line every ten seconds."""

    def __init__(self, what: str) -> None:
        self.what, self.shown, self.terminal = what, time.monotonic(), sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        if self.terminal:
            print(f"\r{self.what}: {done} / {total} shards", end="\n" if done == total else "", file=sys.stderr)
        elif time.monotonic() - self.shown >= 10:
            self.shown = time.monotonic()
            print(f"{self.what}: {done} / {total} shards", file=sys.stderr, flush=True)


def _json(value: dict[str, Any]) -> int:
    print(json.dumps(value, indent=1, allow_nan=False))
    return 0


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    if not match or match[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: use bytes, or a unit as in 500MB or 20GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1
    if not 0 <= days < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no age: use days, as in 90 or 0.5")
    return days


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
