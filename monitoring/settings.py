"""What can be set about watching: the request log, the reference, drift and policy."""

import re
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.config import JsonDict

from monitoring.window import Window

LOCATION: JsonDict = {"location": True}  # where a thing lies, not what comes out: no part of a request's identity
TRIGGERS = ("drift", "age", "cron", "amount", "performance")


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


class ProbeSettings(Section):
    """What the teacher is asked before a retrain is paid for."""

    rows: int = Field(
        64,
        ge=0,
        description="held-out rows of the drifted slice, and as many others, that the teacher is asked about first; "
        "0: none [rows]",
    )
    margin: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="hold when agreement with the teacher has surely lost less than this since the promotion [share]",
    )
    reference_rows: int = Field(
        256, ge=0, description="held-out rows that a new champion's agreement is measured on; 0: none [rows]"
    )


class DriftSettings(Section):
    """When a column counts as drifted."""

    psi_bound: float = Field(
        0.1,
        gt=0,
        description="warning when the lower 95 %% bound of a column's PSI reaches this and it is significant [PSI]",
    )
    critical_bound: float = Field(0.25, gt=0, description="critical when it reaches this [PSI]")
    ks_distance: float = Field(
        0.1, gt=0, le=1, description="warning when a column's KS distance reaches this and is significant [distance]"
    )
    alpha: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="level of warnings, half for PSI and half for KS, each corrected over the columns [probability]",
    )
    info_alpha: float = Field(
        0.01, gt=0, lt=1, description="info when a column's corrected KS or chi-square p is below [probability]"
    )
    correction: Literal["holm", "bh"] = Field(
        "holm", description="correction of the p-values over all columns [holm, bh (Benjamini-Hochberg)]"
    )
    auc_bound: float = Field(
        0.65,
        gt=0.5,
        lt=1,
        description="warning when a classifier tells window from reference, its lower 95 %% bound at least this [AUC]",
    )
    quality_floor: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="critical when measured accuracy is surely below this, and what policy.triggers' performance goes "
        "by; 0: never [share]",
    )
    bins: int = Field(10, ge=2, le=64, description="quantile bins of the PSI [count]")
    min_rows: int = Field(200, ge=20, description="smaller windows are held, whatever they show [rows]")
    max_rows: int = Field(0, ge=0, description="rows of a window that are compared, drawn at random; 0: all [rows]")
    max_categories: int = Field(
        50, ge=1, description="most frequent categories kept in the profile; the others are OTHER [count]"
    )
    sample_rows: int = Field(5000, ge=100, description="feature rows kept beside the profile for pictures [rows]")

    @model_validator(mode="after")
    def _critical_is_above_warning(self) -> "DriftSettings":
        if self.critical_bound < self.psi_bound:
            raise ValueError(f"critical_bound {self.critical_bound:g} is below psi_bound {self.psi_bound:g}: swap them")
        return self


class PolicySettings(Section):
    """When what was seen leads to a retrain."""

    triggers: str = Field(
        "drift", description="what can ask for a retrain, separated by commas [drift, age, cron, amount, performance]"
    )
    need: str = Field("any", description="how many of policy.triggers must ask for it [any, all, or a number]")
    severity: Literal["info", "warning", "critical"] = Field(
        "warning", description="drift asks for a retrain from this severity on [info, warning, critical]"
    )
    k: int = Field(1, ge=1, description="drift or low quality must show in k of the last n windows [windows]")
    n: int = Field(
        1, ge=1, description="windows that policy.k looks back on, this one included, same champion [windows]"
    )
    age_days: float = Field(30.0, gt=0, description="a champion of this age asks for a retrain (age) [days]")
    cron: str = Field(
        "",
        description="times (UTC) that ask for a retrain (cron), seen at the next look [cron expression]",
    )
    amount_rows: int = Field(10000, ge=1, description="so many new rows ask for a retrain (amount) [rows]")
    cooldown_days: float = Field(0.0, ge=0, description="hold for so long after the last promotion or trigger [days]")
    min_new_rows: int = Field(
        0,
        ge=0,
        description="hold until so many rows came after what the champion learned and the last trigger [rows]",
    )
    budget_tokens: int = Field(
        0, ge=0, description="hold when the teacher was paid for so many this month (UTC); 0: no limit [tokens]"
    )
    notify: str = Field(
        "",
        description="Prefect notification block that is told of warning and critical reports; empty: none [TYPE/NAME]",
        json_schema_extra=LOCATION,
    )

    @field_validator("notify")
    @classmethod
    def _names_a_block(cls, text: str) -> str:
        if text and not re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", text):
            raise ValueError("write TYPE/NAME, in small letters, digits and dashes, such as slack-webhook/on-call")
        return text

    @field_validator("triggers", mode="before")
    @classmethod
    def _are_known_triggers(cls, given: object) -> object:
        names = [part.strip() for part in given.split(",")] if isinstance(given, str) else given
        if not isinstance(names, list | tuple) or not names:
            raise ValueError(f"name at least one of {', '.join(TRIGGERS)}, separated by commas")
        for name in names:
            if name not in TRIGGERS:
                raise ValueError(f"{name!r} is no trigger; choose from {', '.join(TRIGGERS)}")
        return ", ".join(name for name in TRIGGERS if name in names)

    @field_validator("need", mode="before")
    @classmethod
    def _is_a_word_or_a_number(cls, given: object) -> object:
        text = str(given).strip()
        if text not in ("any", "all") and not (text.isascii() and text.isdigit() and int(text) >= 1):
            raise ValueError("write any, all, or a number from 1 on")
        return text if text in ("any", "all") else str(int(text))

    @field_validator("cron")
    @classmethod
    def _is_a_schedule(cls, expression: str) -> str:
        from cronsim import CronSim, CronSimError

        if expression:
            try:
                next(CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC)))
            except (CronSimError, StopIteration) as error:
                raise ValueError(f"is no cron expression with a time to come ({error}), as in '0 3 * * 1'") from error
        return expression

    @model_validator(mode="after")
    def _can_be_met(self) -> "PolicySettings":
        if "cron" in self.chosen and not self.cron:
            raise ValueError("cron is among the triggers, but policy.cron is empty: set it, as in '0 3 * * 1'")
        if self.k > self.n:
            raise ValueError(f"k {self.k} is above n {self.n}: so many of the last n windows there never are")
        if self.needed > len(self.chosen):
            raise ValueError(f"need {self.need} is more than there are triggers ({self.triggers})")
        return self

    @property
    def chosen(self) -> list[str]:
        """The triggers by name."""
        return self.triggers.split(", ")

    @property
    def needed(self) -> int:
        """How many of the triggers must ask for a retrain."""
        return {"any": 1, "all": len(self.chosen)}.get(self.need) or int(self.need)
