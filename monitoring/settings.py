"""What can be set about watching: the request log, the reference, drift and the verdict."""

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.config import JsonDict

from monitoring.window import Window

LOCATION: JsonDict = {"location": True}  # where a thing lies, not what comes out: no part of a request's identity


class Section(BaseModel):
    """A table of the settings file: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TrafficSettings(Section):
    """The request log and how it is read."""

    path: str = Field(
        "", description="request log, a folder or fsspec URL; empty: WORKSPACE/traffic", json_schema_extra=LOCATION
    )
    window_days: float = Field(
        7.0,
        gt=0,
        le=36525,
        description="length of the window when --window is not given: the log's last whole days [days]",
        json_schema_extra=LOCATION,  # the window's contents are what counts
    )
    held_out_from: int = Field(
        60, gt=0, lt=100, description="rows with crc32(request_id) %% 100 from here on are never trained on [0-100]"
    )
    profile_until: int = Field(
        80, gt=0, le=100, description="held-out rows below this hash make the reference profile [0-100]"
    )
    max_reject_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="an import with a larger share of bad rows fails and changes nothing [share]",
        json_schema_extra=LOCATION,  # of imports, not of retrains
    )

    @model_validator(mode="after")
    def _a_profile_can_have_rows(self) -> "TrafficSettings":
        if self.profile_until <= self.held_out_from:
            raise ValueError(
                f"profile_until {self.profile_until} is not above held_out_from {self.held_out_from}: "
                "no row could be in the profile"
            )
        return self


class ReferenceSettings(Section):
    """The world of the first champion; later champions bring their own."""

    window: str = Field(
        "", description="START..END the first champion learns from; empty: the whole log", json_schema_extra=LOCATION
    )
    profile: str = Field(
        "", description="START..END its reference profile is made from; empty: the same as reference.window"
    )

    @field_validator("window", "profile")
    @classmethod
    def _is_a_window(cls, text: str) -> str:
        if text:
            Window.parse(text)
        return text


class DriftSettings(Section):
    """When a column counts as drifted."""

    psi_bound: float = Field(
        0.1, gt=0, description="a column drifts when the lower 95 %% bound of its PSI reaches this [PSI]"
    )
    ks_distance: float = Field(
        0.1, gt=0, le=1, description="or when its KS distance reaches this and is significant [distance]"
    )
    alpha: float = Field(0.001, gt=0, lt=1, description="level of the KS tests after Holm's correction [probability]")
    bins: int = Field(10, ge=2, le=64, description="quantile bins of the PSI [count]")
    min_rows: int = Field(200, ge=20, description="smaller windows are held, whatever they show [rows]")
    max_categories: int = Field(
        50, ge=1, description="most frequent categories kept in the profile; the others are OTHER [count]"
    )
    sample_rows: int = Field(5000, ge=100, description="feature rows kept beside the profile for pictures [rows]")


class JudgingSettings(Section):
    """When a challenger counts as not worse, and as better."""

    margin: float = Field(
        0.02, ge=0, lt=1, description="largest loss of exact match on an old slice that is accepted [share]"
    )
    alpha: float = Field(0.05, gt=0, lt=0.5, description="one-sided level of each comparison [probability]")
    min_rows: int = Field(100, ge=10, description="a slice with fewer held-out rows is inconclusive [rows]")
    max_rows: int = Field(5000, ge=100, description="held-out rows scored a slice, drawn without replacement [rows]")
