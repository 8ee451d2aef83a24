"""python -m flows.rollback --config FILE [--reason TEXT] [--champion VERSION] [--json]

Puts the previous champion back, and with it the reference profile that its traffic is compared with. One that was
killed is finished by the same command; who repeats it and gives --champion goes back no further than once.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows import cli, environment, settings  # noqa: F401  # isort: skip  (the environment comes first)
from prefect import flow, get_run_logger
from prefect.events import emit_event

from flows.events import ROLLED_BACK, resource


@flow(name="rollback", log_prints=False)
def rollback(
    config: str | None = None,
    reason: str = "asked for",
    overrides: dict[str, Any] | None = None,
    champion: str | None = None,
) -> dict[str, Any]:
    """Make the previous champion the champion again; raises InputError when there is none.

    champion: only if this version is the champion now, else Failure.
    """
    from flows import wiring
    from tasks import ship

    chosen = settings.load(config, overrides)
    places = wiring.Places(chosen)
    # One that was cut short is not finished first, and then one more made: this one finishes it.
    registry = wiring.registry(chosen, places, recover=False)
    undone = ship.rollback(registry, places.runs, reason, champion)
    get_run_logger().warning("champion %s -> %s: %s", undone["from"], undone["to"], reason)
    emit_event(ROLLED_BACK, resource=resource(chosen.student.name), payload=undone)
    return undone


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    parser = cli.parser("flows.rollback", __doc__ or "")
    parser.add_argument("--reason", type=cli.text, default="asked for", help="why, for the registry and the event")
    parser.add_argument("--champion", metavar="VERSION", help="only if this version is the champion")
    parser.add_argument("--json", action="store_true", help="print what was done as one JSON object on the last line")
    options = cli.parse(parser, argv)
    given = cli.overrides(options)
    cli.check(settings.load(options.config, given))
    config = None if options.config is None else str(Path(options.config).absolute())
    undone = rollback(config, options.reason, given, options.champion)
    print(f"ROLLED BACK  champion was version {undone['from']}, is version {undone['to']} again")
    print(f"its reference profile: {undone['profile']}")
    if options.json:
        sys.stdout.flush()
        print(json.dumps(undone))
    return 0


if __name__ == "__main__":
    cli.run(main)
