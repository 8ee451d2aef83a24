"""A ledger -> tables of its decisions and probes: the command `python -m monitoring.ledger`. It changes nothing."""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

from monitoring.errors import Failure, InputError
from monitoring.history import Probed
from monitoring.ledger import Ledger
from monitoring.probe import told


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m monitoring.ledger", description="Prints the policy's decisions and probes."
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="WORKSPACE/decisions.db")
    parser.add_argument("--json", action="store_true", help="print them as one JSON object instead of tables")
    given = parser.parse_args(arguments)
    try:
        ledger = Ledger(given.file)
        found, probes = ledger.decisions(), ledger.probes()
    except (InputError, Failure) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    if given.json:
        print(json.dumps({"decisions": found, "probes": [each.model_dump(mode="json") for each in probes]}, indent=1))
    else:
        _show(found, probes)
    return 0


def _show(found: list[dict[str, Any]], probes: list[Probed]) -> None:
    decisions = [
        (
            each["time"][:16], each["asked"][:16], each["student"], each["source"], each["window"], each["champion"],
            str(each["rows"]), each["severity"], "trigger" if each["trigger"] else "hold", each["reason"],
        )
        for each in found
    ]  # fmt: skip
    head = ("time", "last asked", "student", "by", "window", "champion", "rows", "severity", "decision", "reason")
    _print(head, decisions)
    asked = [
        (
            each.time.astimezone(UTC).isoformat()[:16], each.student, each.window, each.retrain_id,
            "retrain" if each.pays else "hold", each.reason, told(each.expected), told(each.true) if each.true else "",
        )
        for each in probes
    ]  # fmt: skip
    if asked:
        print()
        _print(("time", "student", "window", "retrain", "probe says", "reason", "expected", "came true"), asked)


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
