"""Features of one's own: functions of the logged rows that another package registers as entry points.

    [project.entry-points."redistill.features"]
    asks_for_code = "my_package.features:asks_for_code"

    def asks_for_code(frame: pd.DataFrame) -> pd.Series: ...  # one value a row, under the frame's own index

One is loaded and called only when `features.use` names it. It is given the rows of the request log, also none at all.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from monitoring.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

GROUP = "redistill.features"
METRICS = "redistill.metrics"  # monitoring/row_metrics.py says what they are


def own_names() -> list[str]:
    """Return the names of the features that installed packages register; nothing is loaded."""
    return sorted(entry_points(group=GROUP).names)


def own_metric_names() -> list[str]:
    """Return the names of the metrics that installed packages register; nothing is loaded."""
    return sorted(entry_points(group=METRICS).names)


def own_feature(name: str, frame: pd.DataFrame) -> pd.Series:
    """Return what the entry point's function makes of the rows.

    Raises InputError, naming the entry point, when it is not registered or more than once, cannot be loaded, raises,
    or returns anything but a Series of one value a row under the frame's index.
    """
    import pandas as pd  # the settings import this module, and --help waits for them

    point = registered(GROUP, name, "features.use")
    place = f"feature {name!r} (entry point {point.value} of {GROUP})"
    try:
        made = point.load()(frame.copy())
    except Exception as error:  # whatever somebody else's code raises
        raise InputError(f"{place} failed: {type(error).__name__}: {error}; {_REMEDY}") from error
    if not isinstance(made, pd.Series):
        raise InputError(f"{place} returned {type(made).__name__}, not a pandas Series; {_REMEDY}")
    if len(made) != len(frame):
        raise InputError(f"{place} returned {len(made)} values for {len(frame)} rows; {_REMEDY}")
    if not made.index.equals(frame.index):
        raise InputError(f"{place} returned a Series under another index than the frame's; {_REMEDY}")
    return made


_REMEDY = "correct it, or leave it out of features.use"


def registered(group: str, name: str, key: str) -> EntryPoint:
    """Return the entry point of a name that stands in the setting `key`; InputError unless there is exactly one."""
    points = {point.value: point for point in entry_points(group=group, name=name)}
    if not points:
        raise InputError(f"{name!r} in {key} is no entry point of {group}: install its package")
    if len(points) > 1:
        raise InputError(f"{name!r} in {key} is registered as {' and as '.join(sorted(points))}: uninstall all but one")
    (point,) = points.values()
    return point
