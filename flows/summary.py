"""How a retrain ended: one object for machines, one table for people."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.connection import masked
from flows import words

MAIN = ("exact_match", "lm_eval")  # shown of every slice

if TYPE_CHECKING:
    from rich.table import Table

    from flows.wiring import Places
    from tasks.run import Run


def result(run: "Run", outcome: str, places: "Places", came_true: Mapping[str, float | None] | None) -> dict[str, Any]:
    """Return the end of a retrain from the manifests of its stages, and what came true of what was expected of it."""
    manifests = run.manifests()
    found = {name: manifest["result"] for name, manifest in manifests.items()}
    costs = [result for result in found.values() if "bought_tokens" in result]
    before = run.request.champion
    promoted = found.get("promote", {}).get("champion")
    return {
        "outcome": outcome,
        "retrain_id": run.request.retrain_id,
        "window": run.request.window,
        "reason": words.reason(outcome, found, run.request.retrain_id),
        "champion": promoted or (before.version if before else None),
        "challenger": found.get("register", {}).get("version"),
        "drift": found["watch"]["drift"],
        "probe": {**found["probe"], "came_true": came_true} if "probe" in found else None,
        "training": found.get("train"),
        "verdict": found.get("judge"),
        "cost": _cost(found),
        "signals": {key: sum(cost[key] for cost in costs) for key in ("reused_tokens", "bought_tokens")},
        "mixture": {key: found["signals"].get(key) for key in ("rows", "outcomes")} if "signals" in found else None,
        "alignment": found.get("signals", {}).get("alignment"),
        "approval": found.get("approval"),
        "int8": found.get("bento", {}).get("int8"),
        "bento": found.get("bento", {}).get("tag"),
        "seconds": {name: manifest["seconds"] for name, manifest in manifests.items()},
        "model_seconds": {name: manifest.get("model_seconds", 0.0) for name, manifest in manifests.items()},
        "notice": run.request.notice,
        "report": str(run.stage("watch") / found["watch"]["report"]) if found["watch"]["report"] else None,
        "places": _places(run, found, places),
    }


def show(ended: dict[str, Any]) -> None:
    """Print the end of a retrain: a line, and a table of stage, seconds, what came of it and where it lies."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 150, soft_wrap=False)
    table = Table(title=None, show_edge=False, pad_edge=False)
    for column, justify in (
        ("stage", "left"),
        ("seconds", "right"),
        ("what came of it", "left"),
        ("where it lies", "left"),
    ):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for stage, seconds in ended["seconds"].items():
        row = (stage, f"{seconds:.1f}", words.of_stage(stage, ended), _shown(ended["places"].get(stage, "")))
        table.add_row(*(escape(cell) for cell in row))  # brackets in them are text, no markup
    head = f"{ended['outcome'].upper()}  retrain {ended['retrain_id']}, window {ended['window']}: {ended['reason']}"
    for text in ("", head, *filter(None, [ended["notice"]])):
        console.print(text, markup=False, highlight=False)
    console.print(table)
    if (ended.get("verdict") or {}).get("checks"):
        console.print(_verdict_table(ended["verdict"]))
    if ended.get("cost"):  # a retrain of an earlier version did not say
        console.print(_cost_table(ended["cost"]))


def _verdict_table(verdict: dict[str, Any]) -> "Table":
    """Return each slice's main metric, and whatever else did not pass or is surely worse than before."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"\nverdict: {verdict['outcome']}", title_justify="left", show_edge=False, pad_edge=False)
    for column in ("slice", "metric", "rows", "champion", "challenger", "difference", "bounds", "outcome"):
        table.add_column(column, justify="left" if column in ("slice", "metric", "outcome") else "right")
    for cells in verdict_rows(verdict):
        table.add_row(*(escape(cell) for cell in cells))
    return table


def verdict_rows(verdict: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the verdict's table: slice, metric, rows, both models, difference, its bounds, outcome."""
    rows: list[tuple[str, ...]] = []
    for check in verdict["checks"]:
        passed = check["outcome"] in ("pass", "reported")
        if check["metric"] not in MAIN and passed and not check.get("harmed"):
            continue
        told = check["outcome"] + (", worse than before" if check.get("harmed") else "")
        if check["outcome"] == "inconclusive" and check.get("rows_needed"):
            told += f": about {check['rows_needed']} rows would decide"
        bounds = f"{_signed(check['lower'])} to {_signed(check['upper'])}" if check["lower"] is not None else ""
        both = (_number(check["champion"]), _number(check["challenger"]))
        rows.append(
            (check["slice"], check["metric"], str(check["rows"]), *both, _signed(check["difference"]), bounds, told)
        )
    for one in verdict.get("fairness", ()):
        whose = f"fairness over {one['column']}"
        gaps = (_number(one["champion_gap"]), _number(one["challenger_gap"]))
        worst = (_number(one["champion_worst"]), _number(one["challenger_worst"]), _signed(one["worst_change"]))
        rows += [
            (whose, f"{one['metric']}, gap", "", *gaps, "", _bound("at most", one["gap_upper"]), one["outcome"]),
            (whose, f"{one['metric']}, worst", "", *worst, _bound("at least", one["worst_lower"]), one["outcome"]),
        ]
    for one in verdict.get("budgets", ()):
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f} times"
        name = f"{one['name']} [{one['unit']}]"
        rows.append(("", name, "", f"{one['champion']:.4g}", f"{one['challenger']:.4g}", ratio, "", one["outcome"]))
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _bound(side: str, value: float | None) -> str:
    return "" if value is None else f"{side} {value:+.4f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"


def _cost(found: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the teacher cost in all, and in each stage's slices; None where it was not asked."""
    from tasks import costs

    said = {name: result["cost"] for name, result in found.items() if "cost" in result}
    if not said:
        return None
    return {**costs.total(list(said.values())), "stages": {name: cost["slices"] for name, cost in said.items()}}


def _cost_table(cost: dict[str, Any]) -> "Table":
    """Return what the teacher cost, a row for each slice of each stage."""
    from rich.markup import escape
    from rich.table import Table

    from tasks import costs

    rows = [{"stage": stage, **row} for stage, slices in cost["stages"].items() for row in costs.rows(slices)]
    table = Table(title=f"\nteacher: {escape(costs.told(cost))}", title_justify="left", show_edge=False, pad_edge=False)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in columns:
        unit = f" [{cost['currency']}]" if column.endswith("money") and "currency" in cost else ""
        table.add_column(escape(column + unit), justify="left" if column in ("stage", "slice") else "right")
    for row in rows:
        values = [row.get(column, "") for column in columns]
        table.add_row(*(escape(f"{value:.6g}" if isinstance(value, float) else str(value)) for value in values))
    return table


def _places(run: "Run", found: dict[str, Any], places: "Places") -> dict[str, str]:
    lie = {name: str(run.stage(name)) for name in found}
    lie["signals"] = places.signals
    if found["watch"]["report"]:
        lie["watch"] = str(run.stage("watch") / found["watch"]["report"])
    if "train" in found:
        lie["train"] = str(run.stage("train") / "student")
    if "judge" in found:
        lie["judge"] = str(run.stage("judge") / "verdict.json")
    if "register" in found:
        lie["register"] = masked(places.registry_uri)
    if "bento" in found:
        lie["bento"] = found["bento"]["path"]
    if "promote" in found:
        lie["promote"] = masked(places.registry_uri)
    return lie


def _shown(place: str) -> str:
    """Return a path relative to the working directory where it is below it."""
    path = Path(place)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else place
