"""What a comparison found: a column, a window's report, and how severe it is. `monitoring.drift` makes them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, computed_field

from monitoring.attribution import Moved
from monitoring.multivariate import DomainAuc, Mmd
from monitoring.performance import Quality
from monitoring.segments import Segment

Severity = Literal["none", "info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("none", "info", "warning", "critical")
ALARMS = ("warning", "critical")


class ColumnDrift(BaseModel):
    """One column, reference against window; its statistics are None where it was not compared."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Literal["numeric", "categorical"]
    psi: float | None = None
    psi_lower: float | None = None  # lower 95 % bound
    psi_p: float | None = None  # without drift
    psi_p_adjusted: float | None = None  # the larger of PSI's and chi-square's, corrected for the number of columns
    cells: int = 0  # of the PSI
    ks_distance: float | None = None  # numeric columns only
    ks_p: float | None = None
    chi_square_p: float | None = None  # in the cells of the PSI
    p_adjusted: float | None = None  # of KS or chi-square, corrected for the number of columns
    jensen_shannon: float | None = None  # distance, 0 to 1
    wasserstein: float | None = None  # numeric columns only
    missing_reference: float  # share of rows
    missing_current: float | None = None
    outside: float | None = None  # share of the values that lie beyond the reference's smallest and largest
    new_categories: dict[str, float] = {}  # share of the values, the most frequent ones
    moved: list[Moved] = []  # the bins or categories that make most of the PSI
    severity: Severity = "none"
    why: str

    @computed_field  # type: ignore[prop-decorator]
    @property
    def drifted(self) -> bool:
        """Whether the severity is warning or above."""
        return self.severity in ALARMS

    def told(self) -> str:
        """Return in words why it is judged so and, where it has drifted, what moved."""
        return "; ".join([self.why, *map(str, self.moved)] if self.drifted else [self.why])


class DriftReport(BaseModel):
    """What a window shows against the reference, columns with the largest PSI first."""

    model_config = ConfigDict(frozen=True)

    window: str
    rows: int
    reference_window: str
    reference_rows: int
    model_version: str
    columns: list[ColumnDrift]
    findings: list[str]
    max_psi: float | None  # None: nothing could be compared
    mmd: Mmd | None = None  # None: rows were not compared
    domain: DomainAuc | None = None  # None: MMD saw nothing to look into
    rows_severity: Severity = "none"
    segments: list[Segment] = []  # values of meta_ columns in which a drifted column has drifted, the surest first
    quality: Quality | None = None  # None: not measured, nor estimated
    quality_severity: Severity = "none"

    @computed_field  # type: ignore[prop-decorator]
    @property
    def severity(self) -> Severity:
        """The highest severity of its columns, its rows and the model's quality."""
        others = (self.rows_severity, self.quality_severity)
        return max([*others, *(column.severity for column in self.columns)], key=SEVERITIES.index)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def drifted(self) -> bool:
        """Whether the severity is warning or above."""
        return self.severity in ALARMS

    @computed_field  # type: ignore[prop-decorator]
    @property
    def drifted_columns(self) -> list[str]:
        """The columns at warning or above, the largest PSI first."""
        return [column.name for column in self.columns if column.drifted]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def drifted_parts(self) -> list[str]:
        """What is at warning or above: the columns, whole rows, the model's quality."""
        others = {"whole rows": self.rows_severity, "quality": self.quality_severity}
        return [*self.drifted_columns, *(name for name, severity in others.items() if severity in ALARMS)]

    def reasons(self, least: Severity) -> list[str]:
        """Return all that is at this severity or above, with its numbers in words."""
        bar = SEVERITIES.index(least)
        found = [f"{column.name} ({column.why})" for column in self.columns if SEVERITIES.index(column.severity) >= bar]
        if SEVERITIES.index(self.rows_severity) >= bar:
            found.append(f"whole rows ({self.rows_told()})")
        if self.quality is not None and SEVERITIES.index(self.quality_severity) >= bar:
            found.append(f"quality ({self.quality.told()})")
        return found

    def rows_told(self) -> str:
        """Return in words what whole rows show."""
        if self.mmd is None or self.mmd.p is None:
            return f"not compared: {self.mmd.why if self.mmd else 'no sample'}"
        told = f"MMD {self.mmd.distance:.3f}, p {self.mmd.p:.2g}"
        if self.domain is not None and self.domain.auc is not None:
            told += f"; a classifier tells them apart with AUC {self.domain.auc:.2f}, at least {self.domain.low:.2f}"
        return f"{told}; {self.rows_severity if self.rows_severity != 'none' else 'quiet'}"
