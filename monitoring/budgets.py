"""What a challenger may cost: latency, size and memory, measured elsewhere, against the champion's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from monitoring.errors import InputError


@dataclass(frozen=True)
class Cost:
    """What both models need of something, in `unit`; the challenger's may be `limit` times the champion's, 0: any."""

    name: str
    champion: float
    challenger: float
    limit: float
    unit: str


class Budget(BaseModel):
    """A cost and whether it is accepted; ratio None: the champion needs nothing of it."""

    model_config = ConfigDict(frozen=True)

    name: str
    unit: str
    champion: float
    challenger: float
    ratio: float | None
    limit: float
    outcome: Literal["pass", "fail", "reported"]
    why: str


def decide(costs: Sequence[Cost]) -> list[Budget]:
    """Return each cost with its outcome: without a limit it is only reported.

    Raises InputError for a cost that is negative or no finite number, and for a name that comes twice.
    """
    names = [cost.name for cost in costs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"budget {', '.join(twice)} is given twice: measure it once")
    return [_decided(cost) for cost in costs]


def _decided(cost: Cost) -> Budget:
    for who, value in (("champion", cost.champion), ("challenger", cost.challenger), ("limit", cost.limit)):
        if not 0 <= value < math.inf:
            raise InputError(f"budget {cost.name!r}: {value} of the {who} is no amount: measure again")
    ratio = cost.challenger / cost.champion if cost.champion else None
    told = f"{cost.challenger:.4g} {cost.unit} after {cost.champion:.4g} {cost.unit}"
    if ratio is not None:
        told += f", {ratio:.2f} times"
    if not cost.limit:
        outcome: Literal["pass", "fail", "reported"] = "reported"
    elif cost.challenger <= cost.limit * cost.champion:
        outcome = "pass"
    else:
        outcome = "fail"
        told += f": above the limit of {cost.limit:g} times"
    return Budget(
        name=cost.name,
        unit=cost.unit,
        champion=cost.champion,
        challenger=cost.challenger,
        ratio=ratio,
        limit=cost.limit,
        outcome=outcome,
        why=f"{cost.name}: {told}",
    )
