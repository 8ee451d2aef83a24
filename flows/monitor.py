"""python -m flows.monitor [--config FILE] [--window START..END] [--json]

Looks at a window; ends in a drift event or in silence. With a Prefect API configured the event starts the retrain
deployment (deployments/prefect.yaml); without one nothing would hear it, and the monitor calls the retrain flow.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows import cli, environment, settings, summary  # noqa: F401  # isort: skip  (the environment comes first)
from prefect import flow, get_run_logger
from prefect.blocks.core import Block
from prefect.events import emit_event
from prefect.settings import get_current_settings

from flows.events import DRIFT_DETECTED, drift_payload, resource
from flows.retrain import retrain


@flow(name="monitor", log_prints=False)
def monitor(
    config: str | None = None, window: str | None = None, overrides: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Compare a window with the champion's reference profile; on drift, report it and see to a retrain."""
    from flows import wiring
    from tasks import watch

    heard = get_current_settings().api.url is not None
    if heard and overrides:
        raise settings.SettingsError(
            f"{', '.join(sorted(overrides))} on the command line would not reach the retrain that the drift event "
            "starts: put them into the settings file, which the event names"
        )
    chosen = settings.load(config, overrides)
    places = wiring.Places(chosen)
    seen = watch.monitor(
        wiring.registry(chosen, places),
        places.runs,
        places.workspace / "monitor",
        places.log,
        places.ledger,
        asked=window,
        reference=chosen.reference,
        settings=wiring.watching(chosen),
    )
    if chosen.policy.notify and seen["drift"]["drifted"] and not seen["repeated"]:  # it looks again every hour
        seen["notified"] = _notify(chosen.policy.notify, chosen.student.name, seen)
    if not seen["trigger"]:
        get_run_logger().info("window %s: %s", seen["window"], seen["reason"])
        return {**seen, "retrain": None}
    get_run_logger().warning("window %s: %s", seen["window"], seen["reason"])
    if not heard:
        return {**seen, "retrain": retrain(config, seen["window"], overrides)}
    emit_event(DRIFT_DETECTED, resource=resource(chosen.student.name), payload=drift_payload(config, seen))
    return {**seen, "retrain": "left to the automation"}


def _notify(block: str, student: str, seen: Mapping[str, Any]) -> bool:
    """Tell the people behind a notification block; what hinders it is logged, and does not hold up the retrain."""
    from prefect.blocks.abstract import NotificationBlock

    severity, parts = seen["drift"]["severity"], ", ".join(seen["drift"]["drifted_parts"])
    decided = "a retrain is started" if seen["trigger"] else f"held: {seen['reason']}"
    body = f"window {seen['window']} against champion {seen['champion']}: {parts}; {decided}. {seen['report']}"
    try:
        told = Block.load(block)
        if not isinstance(told, NotificationBlock):
            raise TypeError(f"it is a {type(told).__name__}, no notification block")
        tell: Any = told.notify  # typed as a coroutine, and plain where there is no loop
        tell(body, subject=f"{severity}: student {student} has drifted")
    except Exception as error:  # every kind of block has errors of its own
        get_run_logger().error("policy.notify = %r was not told: %s: %s", block, type(error).__name__, error)
        return False
    return True


def verdict(seen: Mapping[str, Any]) -> str:
    """Return in a word what came of a window: QUIET is one without drift, HELD one whose drift the policy lets be."""
    if seen["trigger"]:
        return "DRIFT"
    return "QUIET" if seen["drift"]["severity"] == "none" else "HELD"


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    parser = cli.parser("flows.monitor", __doc__ or "")
    parser.add_argument("--window", metavar="START..END", help="rows to look at (default: the log's last days)")
    parser.add_argument("--json", action="store_true", help="print what was seen as one JSON object on the last line")
    options = cli.parse(parser, argv)
    given = cli.overrides(options)
    cli.check(settings.load(options.config, given), options.window)
    config = None if options.config is None else str(Path(options.config).absolute())
    seen = monitor(config, options.window, given)
    print(f"{verdict(seen)}  window {seen['window']}: {seen['reason']}\nreport: {seen['report']}")
    if isinstance(seen["retrain"], dict):
        summary.show(seen["retrain"])
    if options.json:
        sys.stdout.flush()
        print(json.dumps(seen))
    return 0


if __name__ == "__main__":
    cli.run(main)
