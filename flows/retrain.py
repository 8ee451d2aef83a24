"""python -m flows.retrain [--config FILE] [--window START..END] [--force] [--again] [--json]

Without --config it shows the embedded demo: a quiet window is held, a drifted one retrained and promoted.
"""

import getpass
import json
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import cli, environment, settings, summary  # noqa: F401  # isort: skip  (the environment comes first)
from prefect import flow, get_run_logger
from prefect.events import emit_event
from prefect.runtime import flow_run

from flows.events import PROMOTED, REJECTED, resource

if TYPE_CHECKING:
    from deployments.registry import Registry
    from flows.wiring import Places
    from tasks.run import Run

EXAMPLES = """examples:
  python -m flows.retrain                                            the embedded demo, nothing else needed
  python -m flows.retrain --config redistill.toml                    the latest window of the log
  python -m flows.retrain --config redistill.toml --window 2016-01-01..2017-01-01 --force
  python -m flows.retrain --config redistill.toml --approve 3f1c9a20be44 --note "looked at 50 answers"
"""


def _name() -> str:
    return f"retrain {flow_run.parameters.get('window') or 'the latest window'}"


@flow(name="retrain", flow_run_name=_name, log_prints=False)
def retrain(
    config: str | None = None,
    window: str | None = None,
    overrides: dict[str, Any] | None = None,
    force: bool = False,
    again: bool = False,
    reported_by: str | None = None,
    approve: str | None = None,
    by: str = "",
    note: str = "",
) -> dict[str, Any]:
    """Keep the student good: look at a window of traffic, and when it has drifted distil, judge, ship.

    config: settings file. window: START..END. overrides: settings as on the command line. force: retrain although
    the window is quiet, and whatever the policy and the probe say. again: a new retrain although this very request has
    been answered, or as what its retrain made was changed or rolled back. reported_by: id of the drift event. approve:
    id of a retrain that was held, whose challenger is to be promoted; by and note: who says so, and why.
    """
    from flows import wiring
    from tasks import probe, teacher_server, watch

    chosen = settings.load(config, overrides)
    places = wiring.Places(chosen)
    registry = wiring.registry(chosen, places)
    wiring.tracker(chosen)  # whose key may be missing, which is said before anything is started
    if approve:
        run = _approved(approve, by, note, chosen, places, registry)
    else:
        run = _planned(window, force, again, chosen, places, registry)
    logger = get_run_logger()
    logger.info(
        "retrain %s of window %s%s",
        run.request.retrain_id,
        run.request.window,
        f", reported by {reported_by}" if reported_by else "",
    )
    with run.locked(lambda: logger.info("retrain %s is at work in another process: waiting", run.request.retrain_id)):
        if watch.triggered_since(run, places.ledger):
            logger.info("retrain %s was held by the policy before, which asks for it now", run.request.retrain_id)
            run.reopen("watch")
        if (done := run.result()) is not None:
            logger.info("retrain %s has been answered before: %s", run.request.retrain_id, done["outcome"])
            return _still_so(done, registry)
        with teacher_server.taken_down_afterwards(run.folder), run.marked_if_spoiled():
            outcome = _stages(run, chosen, places, registry)
        result = summary.result(run, outcome, places, probe.settle(run, places.ledger))
        if outcome != "held":  # before the end is written: an event may come twice, but is not lost
            payload = {key: result[key] for key in ("retrain_id", "outcome", "window", "champion", "challenger")}
            event = PROMOTED if outcome == "promoted" else REJECTED
            emit_event(event, resource=resource(run.request.student), payload=payload)
        run.finish(result)
    return result


def _planned(
    window: str | None, force: bool, again: bool, chosen: settings.Settings, places: "Places", registry: "Registry"
) -> "Run":
    """Return the run of this request: an earlier one, or a new one."""
    from tasks import plan

    return plan.plan(
        plan.Asked(window, force, again),
        registry,
        places.runs,
        places.log,
        traffic_settings=chosen.traffic,
        reference=chosen.reference,
        student=chosen.student,
        teacher=chosen.teacher,
        packaging=chosen.packaging,
        training=chosen.training,
        on_policy=chosen.on_policy,
        judging=chosen.judging,
        changing=settings.result_changing(chosen),
    )


def _approved(
    retrain_id: str, by: str, note: str, chosen: settings.Settings, places: "Places", registry: "Registry"
) -> "Run":
    """Return the run of a retrain that was held, with the answer of a person written into it."""
    from tasks import approve

    run = approve.asked_before(retrain_id, registry, places.runs, settings.result_changing(chosen))
    approve.give(run, by or getpass.getuser(), note)
    return run


def _still_so(done: dict[str, Any], registry: "Registry") -> dict[str, Any]:
    """Return the end of an earlier retrain, with a notice when its challenger is the champion no more."""
    serving = registry.champion()
    if done["outcome"] != "promoted" or serving is None or serving.version == done["champion"]:
        return done
    notice = (
        f"this was answered before; since then version {done['champion']} has been replaced: the champion is version "
        f"{serving.version}, --again makes a new retrain"
    )
    get_run_logger().warning(notice)
    return {**done, "notice": notice}


def _stages(run: "Run", chosen: settings.Settings, places: "Places", registry: "Registry") -> str:
    """Take a run from its last finished stage to its end; returns promoted, rejected or held."""
    from flows import wiring
    from tasks import approve, judge, probe, profile, ship, teach, train, watch

    watching, teaching = wiring.watching(chosen), wiring.teaching(chosen, places)
    decision = watch.watch(run, places.log, places.ledger, watching)
    if not decision["trigger"]:
        return "held"
    start = wiring.start_of(run, chosen)
    if not probe.probe(run, places.log, start, wiring.probing(chosen), teaching)["pays"]:
        return "held"
    teach.teach(run, places.log, start, teaching)
    student = train.train(run, start, teaching)
    verdict = judge.judge(run, places.log, student, chosen.judging, teaching, chosen.features.refusal, chosen.packaging)
    version = ship.register(run, registry, student, wiring.tracker(chosen))["version"]
    asks = approve.by_hand(run, chosen.promotion)
    if verdict["outcome"] != "pass" and not (asks and verdict["outcome"] == "inconclusive"):
        return "rejected" if verdict["outcome"] == "fail" else "held"
    ship.package(run, version, student, places.bentos, chosen.packaging, chosen.student)
    said = approve.approval(run, version, chosen.promotion) if asks else "approved"
    if said == "refused":
        ship.refuse(run, registry, version)
    if said != "approved":
        return "rejected" if said == "refused" else "held"
    ship.check_files(run, student)
    profile.profile(run, places.log, student, watching, chosen.probe, teaching)
    ship.promote(run, registry, version, wiring.tracker(chosen))
    return "promoted"


def _nothing_given(options: Namespace) -> bool:
    """Say whether this is the plain command, which shows the demo: no file, no workspace, no request."""
    elsewhere = ("REDISTILL_CONFIG", "REDISTILL_WORKSPACE")
    if any(os.environ.get(name) for name in elsewhere) or options.workspace is not None:
        return False
    return not (options.config or options.window or options.force or options.again or options.approve)


def _check_approval(options: Namespace, chosen: settings.Settings) -> None:
    """Raise SettingsError for options that do not go together, InputError for a retrain that is not there."""
    others = [name for name in ("window", "force", "again") if getattr(options, name)]
    if options.approve and others:
        raise settings.SettingsError(f"--approve names a retrain, --{others[0]} asks for one: give one of the two")
    if (options.by or options.note) and not options.approve:
        raise settings.SettingsError("--by and --note say who approves and why: give --approve RETRAIN_ID as well")
    if options.approve:  # before a workspace or a registry is made
        from tasks import approve

        approve.require(options.approve, Path(chosen.workspace).expanduser().absolute() / "runs")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    parser = cli.parser("flows.retrain", __doc__ or "", EXAMPLES)
    parser.add_argument(
        "--window", metavar="START..END", help="rows to look at, half-open (default: the log's last days)"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="retrain although the window is quiet, and whatever the policy and the probe say",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="a new retrain, although this request has been answered, or as what its retrain made was changed or "
        "rolled back; one that was killed goes on",
    )
    parser.add_argument(
        "--approve", metavar="RETRAIN_ID", help="promote the challenger of a retrain that was held for a person"
    )
    parser.add_argument(
        "--by", type=cli.text, default="", metavar="NAME", help="with --approve: who says so (default: your login)"
    )
    parser.add_argument(
        "--note", type=cli.text, default="", metavar="TEXT", help="with --approve: why, for the registry"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on the last line")
    parser.add_argument("--open", action="store_true", help="open the Evidently report in a browser")
    options = cli.parse(parser, argv)
    given = cli.overrides(options)
    chosen = settings.load(options.config, given)
    if _nothing_given(options):
        from demo import loop

        result = loop.main(
            lambda config, window: retrain(config, window, given),
            summary.show,
            lambda config: settings.result_changing(settings.load(config, given)),
        )
    else:
        cli.check(chosen, options.window)
        _check_approval(options, chosen)
        config = None if options.config is None else str(Path(options.config).absolute())
        result = retrain(
            config,
            options.window,
            given,
            options.force,
            options.again,
            approve=options.approve,
            by=options.by,
            note=options.note,
        )
        summary.show(result)
    if options.open and result["report"]:
        import webbrowser

        webbrowser.open(Path(result["report"]).as_uri())
    if options.json:
        sys.stdout.flush()
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    cli.run(main)
