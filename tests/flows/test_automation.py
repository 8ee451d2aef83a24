"""The trigger in deployments/prefect.yaml, without a server: it covers the monitor's event, and its parameters fit.

And what the monitor says in a word, with the event or without.
"""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger
from prefect.server.events.actions import RunDeployment
from prefect.server.events.schemas.automations import Automation, EventTrigger, Firing, TriggeredAction, TriggerState
from prefect.server.events.schemas.events import ReceivedEvent

from flows import events
from flows.monitor import monitor, verdict
from flows.retrain import retrain
from flows.rollback import rollback

FILE = Path(__file__).parents[2] / "deployments" / "prefect.yaml"
DEPLOYMENTS = {entry["name"]: entry for entry in yaml.safe_load(FILE.read_text())["deployments"]}
SEEN = {
    "window": "2016-01-01..2017-01-01",
    "champion": "3",
    "drift": {"rows": 500, "drifted_columns": ["response", "prompt_chars"], "max_psi": 0.31},
}


def drift_event(config: str | None = "/srv/redistill.toml", student: str = "helpdesk") -> ReceivedEvent:
    return ReceivedEvent(
        occurred=datetime.now(UTC),
        event=events.DRIFT_DETECTED,
        resource=events.resource(student),
        payload=events.drift_payload(config, SEEN),
        id=uuid4(),
    )


def trigger() -> tuple[DeploymentEventTrigger, EventTrigger]:
    (spec,) = DEPLOYMENTS["retrain"]["triggers"]
    own = DeploymentEventTrigger.model_validate(spec)
    core = own.trigger_type(**own.model_dump())
    return own, EventTrigger.model_validate(core.model_dump(mode="json"))


def rendered(event: ReceivedEvent) -> dict[str, Any]:
    own, core = trigger()
    action = RunDeployment(source="selected", deployment_id=uuid4(), parameters=own.parameters)
    now = datetime.now(UTC)
    automation = Automation(name="test", trigger=core, actions=[action])
    firing = Firing(trigger=core, trigger_states={TriggerState.Triggered}, triggered=now, triggering_event=event)
    triggered = TriggeredAction(
        automation=automation,
        firing=firing,
        triggered=now,
        triggering_labels={},
        triggering_event=event,
        action=action,
    )
    return asyncio.run(action.render_parameters(triggered))


def test_the_trigger_covers_the_event_that_the_monitor_builds() -> None:
    _, core = trigger()
    assert core.covers(drift_event())
    assert core.expects(events.DRIFT_DETECTED)


@pytest.mark.parametrize("other", [events.PROMOTED, events.REJECTED, events.ROLLED_BACK])
def test_no_other_event_of_ours_starts_a_retrain(other: str) -> None:
    _, core = trigger()
    assert not core.expects(other)


@pytest.mark.parametrize("config", ["/srv/redistill.toml", None])
def test_the_rendered_parameters_are_accepted_by_the_flow(config: str | None) -> None:
    event = drift_event(config)
    parameters = retrain.validate_parameters(rendered(event))
    assert parameters["config"] == config
    assert parameters["window"] == SEEN["window"]
    assert parameters["reported_by"] == str(event.id)
    assert parameters["force"] is False


def test_students_are_kept_apart() -> None:
    _, core = trigger()
    assert core.for_each == {"prefect.resource.id"}


def test_a_drift_event_carries_ids_and_scalars_only() -> None:
    payload = events.drift_payload("/srv/redistill.toml", SEEN)
    assert all(isinstance(value, str | int | float) for value in payload.values())


def test_each_deployment_runs_its_flow_in_the_process_pool() -> None:
    flows = {"monitor": monitor, "retrain": retrain, "rollback": rollback}
    assert set(DEPLOYMENTS) == set(flows)
    for name, flow in flows.items():
        module, _, function = DEPLOYMENTS[name]["entrypoint"].rpartition(".")
        assert (module, function) == (flow.fn.__module__, flow.fn.__name__)
        assert DEPLOYMENTS[name]["work_pool"] == {"name": "redistill"}
    assert DEPLOYMENTS["monitor"]["schedules"][0]["cron"]
    assert DEPLOYMENTS["retrain"]["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}


@pytest.mark.parametrize(
    ("trigger", "severity", "said"),
    [
        (True, "warning", "DRIFT"),
        (False, "none", "QUIET"),
        (False, "info", "HELD"),
        (False, "critical", "HELD"),
    ],
)
def test_the_monitor_calls_a_window_quiet_only_when_it_has_not_drifted(trigger: bool, severity: str, said: str) -> None:
    assert verdict({"trigger": trigger, "drift": {"severity": severity}}) == said
