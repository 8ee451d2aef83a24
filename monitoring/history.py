"""What a policy looks back on: decisions on windows seen before, and what stood at the moment. Scalars, never a row."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from monitoring.drift_report import Severity


class Decision(BaseModel):
    """Whether a retrain is due, and why or why not."""

    model_config = ConfigDict(frozen=True)

    trigger: bool
    reason: str
    repeated: bool = False  # the question was asked before, and this was its answer


class Moment(BaseModel):
    """When a window is looked at and what stands then; what is not known takes no part in the decision."""

    model_config = ConfigDict(frozen=True)

    time: datetime | None = None
    champion: str = ""  # version
    champion_digest: str = ""
    champion_trained: datetime | None = None
    champion_promoted: datetime | None = None
    champion_log_rows: int = 0  # rows of the log before the end of what the champion learned from
    window_digest: str = ""
    log_rows: int = 0  # rows of the log before the end of the window


class Observation(BaseModel):
    """What one window showed and what was decided on it: scalars and names of columns, never a row."""

    model_config = ConfigDict(frozen=True)

    time: datetime
    window: str
    window_digest: str
    champion: str
    champion_digest: str
    severity: Severity
    drifted_columns: tuple[str, ...]
    quality: float | None
    quality_high: float | None = None  # upper end of its 95 % interval
    rows: int
    log_rows: int
    trigger: bool
    reason: str


class Probed(BaseModel):
    """What was expected of a retrain before it was paid for, and what came true: gain, tokens, seconds."""

    model_config = ConfigDict(frozen=True)

    retrain_id: str
    time: datetime
    student: str
    window: str
    pays: bool
    reason: str
    expected: dict[str, float | None]
    true: dict[str, float | None] | None = None  # None: not retrained, or not yet


class History(BaseModel):
    """What came before: earlier decisions of the student, the oldest first, and this month's bought tokens."""

    model_config = ConfigDict(frozen=True)

    earlier: tuple[Observation, ...] = ()
    bought_tokens: int = 0


class Finding(BaseModel):
    """What a trigger or a guard says: `met` when it asks for a retrain, or when it holds one."""

    model_config = ConfigDict(frozen=True)

    met: bool
    reason: str
