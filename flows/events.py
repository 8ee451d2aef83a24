"""The events that the flows emit: ids and scalars, never data. deployments/prefect.yaml listens for the first."""

from collections.abc import Mapping
from typing import Any

DRIFT_DETECTED = "student.drift.detected"
PROMOTED = "student.promoted"
REJECTED = "student.rejected"
ROLLED_BACK = "student.rolled_back"


def resource(student: str) -> dict[str, str]:
    """Return the resource that events about a student carry."""
    return {"prefect.resource.id": f"student.{student}", "prefect.resource.name": student}


def drift_payload(config: str | None, seen: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a drift event says: enough to start the retrain of this very window."""
    drift = seen["drift"]
    return {
        "config": config,
        "window": seen["window"],
        "champion": seen["champion"],
        "rows": drift["rows"],
        "drifted_columns": ", ".join(drift["drifted_columns"]),
        "max_psi": drift["max_psi"],
    }
