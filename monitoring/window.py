"""A window: a half-open stretch of the request log's time, written START..END."""

from dataclasses import dataclass
from datetime import UTC, datetime, time

from monitoring.errors import InputError


def parse_moment(text: str) -> datetime:
    """An ISO 8601 date or datetime as UTC; a naive one is taken as UTC. Raises ValueError."""
    try:
        moment = datetime.fromisoformat(text.strip())
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{text!r} is outside the years 1 to 9999") from error


@dataclass(frozen=True, order=True)
class Window:
    """The moments from start (included) to end (excluded), UTC; InputError when naive or start >= end."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        """Bring both ends to UTC and refuse an empty or reversed window."""
        for name in ("start", "end"):
            moment = getattr(self, name)
            if moment.tzinfo is None:
                raise InputError(f"window {name} {moment.isoformat()} has no time zone; give UTC datetimes")
            object.__setattr__(self, name, moment.astimezone(UTC))
        if self.start >= self.end:
            raise InputError(f"window {self}: START must lie before END, which is itself not part of the window")

    @classmethod
    def parse(cls, text: str) -> "Window":
        """Read START..END, ISO dates or datetimes, naive ones as UTC; InputError for anything else."""
        start, separator, end = text.partition("..")
        try:
            if not separator:
                raise ValueError("there is no '..' in it")
            moments = parse_moment(start), parse_moment(end)
        except ValueError as error:
            raise InputError(
                f"window {text!r} cannot be read ({error}); write START..END with ISO dates or datetimes, "
                "such as 2016-01-01..2017-01-01"
            ) from error
        return cls(*moments)

    def __str__(self) -> str:
        """Dates when both ends are midnight, else datetimes with Z; Window.parse reads both back exactly."""
        if all(moment.time() == time.min for moment in (self.start, self.end)):
            return f"{self.start.date()}..{self.end.date()}"
        return "..".join(moment.replace(tzinfo=None).isoformat() + "Z" for moment in (self.start, self.end))
