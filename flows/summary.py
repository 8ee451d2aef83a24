"""How a retrain ended: one object for machines, one table for people."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.connection import masked

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
        "reason": _reason(outcome, found, run.request.retrain_id),
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
        row = (stage, f"{seconds:.1f}", _told(stage, ended), _shown(ended["places"].get(stage, "")))
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
    for one in verdict.get("budgets", ()):
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f} times"
        name = f"{one['name']} [{one['unit']}]"
        rows.append(("", name, "", f"{one['champion']:.4g}", f"{one['challenger']:.4g}", ratio, "", one["outcome"]))
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


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


def _reason(outcome: str, found: dict[str, Any], retrain_id: str) -> str:
    if "judge" in found and outcome != "promoted":
        verdict = f"verdict {found['judge']['outcome']}: {found['judge']['reason']}"
        if "approval" in found:
            return f"{_approval(found['approval'])}; {verdict}"
        waits = f"; a person may approve it: python -m flows.retrain --approve {retrain_id}"
        return verdict + (waits if outcome == "held" else "")
    if "probe" in found and not found["probe"]["pays"]:
        return str(found["probe"]["reason"])
    return str(found["watch"]["reason"])


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


def _told(stage: str, ended: dict[str, Any]) -> str:
    drift, verdict = ended["drift"], ended["verdict"]
    if stage == "watch":
        return "no champion yet" if drift is None else f"drifted: {', '.join(drift['drifted_parts']) or 'nothing'}"
    if stage == "probe":
        return _expectation(ended["probe"])
    if stage == "signals":
        cost = f"{ended['signals']['bought_tokens']} tokens bought, {ended['signals']['reused_tokens']} reused"
        aligned = (ended.get("alignment") or {}).get("told", "")
        return "; ".join(filter(None, [cost, _mixed(ended.get("mixture")), aligned]))
    if stage == "judge":
        means = "; ".join(f"{name}: {_pair(values)}" for name, values in verdict["exact_match"].items())
        told = f"{verdict['outcome']}. exact match {means}"
        errors = verdict.get("teacher_errors")
        return f"{told}. teacher-error set, {errors['rows']} rows: {_pair(errors)}" if errors else told
    others = {
        "train": _training(ended.get("training") or {}),
        "register": f"version {ended['challenger']}",
        "bento": "; ".join(filter(None, [ended["bento"], _small(ended.get("int8") or {})])),
        "approval": _approval(ended.get("approval") or {}),
        "profile": "the new reference",
        "promote": f"champion is version {ended['champion']}",
    }
    return others[stage]


def _small(numbers: dict[str, float]) -> str:
    """Return in words how 8-bit weights do beside the checkpoint's own; empty where there are none."""
    told = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in numbers.items())
    return f"8-bit weights beside the checkpoint: {told}" if told else ""


def _approval(said: dict[str, Any]) -> str:
    """Return in words what a person said; empty where nobody was asked."""
    if not said:
        return ""
    note = f": {said['note']}" if said["note"] else ""
    return f"{'approved' if said['approved'] else 'refused'} by {said['by']} at {said['at']}{note}"


def _mixed(mixture: dict[str, Any] | None) -> str:
    """Return in words what became of the rows; empty for a retrain of a version that did not say."""
    counted = (mixture or {}).get("outcomes") or {}
    kinds = {
        "trained": "trained",
        "duplicate": "duplicates",
        "quarantined": "quarantined",
        "held": "held for the teacher-error set",
    }
    sums = {kind: sum(n for name, n in counted.items() if name.startswith(kind)) for kind in kinds}
    return ", ".join(f"{n} {kinds[kind]}" for kind, n in sums.items() if n)


def _training(came: dict[str, Any]) -> str:
    """Return in words which step's weights the student has, what validation said, and how many rows had no step."""
    missed = came.get("rows", {}).get("not_reached", 0)  # a retrain of an earlier version did not say
    unseen = f"; {missed} rows were in no step: {came['not_reached_because']}" if missed else ""
    unseen += _on_policy(came.get("on_policy"))
    if came.get("validation_loss") is None:
        return f"a new student after {came['steps']} steps{unseen}" if came else "a new student"
    early = ", stopped early" if came["stopped_early"] else ""
    return (
        f"a new student: step {came['exported_step']} of {came['steps']} by validation loss "
        f"{came['validation_loss']:.4f}{early}{unseen}"
    )


def _on_policy(came: dict[str, Any] | None) -> str:
    """Return in words what the student said itself; empty where it learned from the teacher's answers alone."""
    if not came:
        return ""
    return (
        f"; {came['own_rows']} answers of its own in {came['rounds']} rounds, {came['mean_tokens']:.1f} tokens each "
        f"({came['empty_share']:.0%} empty, {came['cut_share']:.0%} cut), scored by the teacher"
    )


def _expectation(probe: dict[str, Any]) -> str:
    """Return in words what the probe saw and expected, and what came true."""
    from monitoring.probe import told as numbers

    loss, true = probe["window_loss"], probe["came_true"]
    parts = [f"agreement with the teacher {_percent(probe['now']['drifted'])}"]
    parts += [f"{_percent(probe['now']['rest'])} elsewhere"] if probe["now"]["rest"] else []
    parts += [f"was {_percent(probe['before'])}"] if probe["before"] else []
    seen = f"{', '.join(parts)}: loss {loss['low']:.2f} to {loss['high']:.2f}. expected {numbers(probe['expected'])}"
    return f"{seen}; came true {numbers(true)}" if true else seen


def _percent(agreement: dict[str, int]) -> str:
    return f"{agreement['agreed'] / agreement['rows']:.0%}"


def _pair(values: dict[str, float]) -> str:
    if "champion" in values:
        return f"{values['champion']:.3f} -> {values['challenger']:.3f}"
    return f"{values['challenger']:.3f}"


def _shown(place: str) -> str:
    """Return a path relative to the working directory where it is below it."""
    path = Path(place)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else place
