"""What a person is told of a retrain."""

from typing import Any

from flows import summary


def test_rows_that_the_training_did_not_reach_are_told() -> None:
    rows = {"mixture": 32, "training": 20, "validation": 0, "not_reached": 12}
    came: dict[str, Any] = {"steps": 3, "exported_step": 3, "stopped_early": False, "validation_loss": None}
    why = "the training ended within its first pass over the rows: training.epochs is below 1"
    said = summary._training({**came, "rows": rows, "not_reached_because": why})
    assert said == f"a new student after 3 steps; 12 rows were in no step: {why}"
    early = {**came, "validation_loss": 0.5, "stopped_early": True, "rows": rows, "not_reached_because": why}
    assert summary._training(early).endswith(f"0.5000, stopped early; 12 rows were in no step: {why}")
    assert summary._training({**came, "rows": {**rows, "not_reached": 0}}) == "a new student after 3 steps"
    assert summary._training({**came, "rows": {"mixture": 32, "training": 32, "validation": 0}}).endswith("3 steps")
    assert summary._training({}) == "a new student"
