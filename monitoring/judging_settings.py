"""What can be set about judging: which metrics decide, by how much a challenger may lose, and what it may cost."""

import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from pydantic import Field, field_validator, model_validator

from monitoring.extensions import own_metric_names
from monitoring.settings import LOCATION, Section

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """What a metric of a row says; `margin` None: `judging.margin`. A row gains or loses `bound` at most."""

    better: Better
    unit: str
    margin: float | None = None
    bound: float = 1.0


# A likelihood has no end, and one row could lose more than all others gain; a row counts by no more than what a blind
# guess among 160,000 tokens costs. What that takes: some 720 rows for a margin of 0.05 nats, and 290 for a segment's.
LIKELIHOOD_BOUND = 12.0  # [nats/token]

METRICS = {
    "exact_match": Metric("higher", "share"),  # the response is the target
    "token_f1": Metric("higher", "share"),  # words in common with the target
    "negative_log_likelihood": Metric("lower", "nats/token", 0.05, LIKELIHOOD_BOUND),  # of the target, a token
    "teacher_agreement": Metric("higher", "share"),  # the response is the teacher's
    "calibration_error": Metric("lower", "share"),  # of the confidences, over all rows of a slice
    "refusal_rate": Metric("lower", "share"),  # the response is a refusal
    "lm_eval": Metric("higher", "share"),  # a task's score of a row
}


class JudgingSettings(Section):
    """When a challenger counts as not worse, and as better.

    Every gate has to hold on every slice, so each one more makes it likelier that a challenger as good as the champion
    is held by chance: one slice of 1,000 rows, of which 5 % change, passes at 87 %, ten such slices at 24 %, and a
    second gate would about square that. The default is therefore the one metric that all slices have and that an
    answer's use hangs on. The others are reported with their bounds, and where one of them is surely worse the verdict
    names the slice (`harmed`) and says so in its reason. Answers in free text hardly match: there token_f1 is the gate.
    """

    margin: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="largest loss that a gate accepts on a slice, where judging.gates names no other [share]",
    )
    gates: tuple[str, ...] = Field(
        ("exact_match",),
        description="metrics that must not be worse on any slice, each NAME or NAME=MARGIN, in a list or between "
        f"commas: {', '.join(METRICS)}, or of judging.own_metrics; the others are reported [names]",
    )
    superior: str = Field(
        "exact_match", description="metric that must be better on the fresh slice; empty: none must be [name]"
    )
    alpha: float = Field(0.05, gt=0, lt=0.5, description="one-sided level of each comparison [probability]")
    min_rows: int = Field(100, ge=10, description="a slice with fewer held-out rows is inconclusive [rows]")
    max_rows: int = Field(5000, ge=100, description="held-out rows scored a slice, drawn without replacement [rows]")
    segment_rows: int = Field(
        300, ge=10, description="segments, and teacher errors, of fewer rows are left out and counted [rows]"
    )
    segment_factor: float = Field(
        2.5, ge=1, description="a segment may lose so many times a gate's margin: it has fewer rows [times]"
    )
    resamples: int = Field(2000, ge=200, le=100_000, description="resamples of the bootstrap [count]")
    seed: int = Field(0, ge=0, description="of the bootstrap [number]")
    own_metrics: tuple[str, ...] = Field(
        (), description="one's own metrics, entry points of redistill.metrics; empty: none [names]"
    )
    golden: str = Field(
        "",
        description="CSV, JSONL or Parquet of prompts and references that must never get worse, a slice of its own; "
        "empty: none",
        json_schema_extra=LOCATION,  # its content is what counts
    )
    buy_teacher_agreement: bool = Field(
        False,
        description="the teacher is asked about held-out rows with a label too, so that its agreement is known of all "
        "[true, false]",
    )
    lm_eval: tuple[str, ...] = Field(
        (),
        description="tasks of lm-eval, a slice each, by name or YAML file; empty: none [names]",
        json_schema_extra=LOCATION,  # their content is what counts
    )
    latency_rows: int = Field(
        64, ge=1, description="held-out prompts that both models answer in turns, to compare their latency [rows]"
    )
    max_latency_p50: float = Field(
        2.0, ge=0, description="largest median latency, in the champion's; 0: no limit [times]"
    )
    max_latency_p95: float = Field(
        2.0, ge=0, description="largest 95 %% latency, in the champion's; 0: no limit [times]"
    )
    max_size: float = Field(1.5, ge=0, description="largest size on disk, in the champion's; 0: no limit [times]")
    max_memory: float = Field(
        1.5, ge=0, description="largest memory of the weights, in the champion's; 0: no limit [times]"
    )
    fairness: bool = Field(
        False,
        description="the gates must also be even over the segments of each meta_ column, by Fairlearn [true, false]",
    )
    fairness_gap: float = Field(
        0.1, gt=0, description="largest accepted gap between a column's best and worst segment [unit of the metric]"
    )

    @field_validator("gates", "own_metrics", "lm_eval", mode="before")
    @classmethod
    def _names_between_commas(cls, value: object) -> object:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_validator("gates")
    @classmethod
    def _are_gates(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        names = [_split(gate)[0] for gate in given]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is named twice")
        return given

    @field_validator("own_metrics")
    @classmethod
    def _are_registered(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        registered = own_metric_names() if names else []
        for name in names:
            if name in METRICS:
                raise ValueError(f"{name!r} is a metric of its own already: register yours under another name")
            if name not in registered:
                raise ValueError(
                    f"{name!r} is no entry point of redistill.metrics; there are: {', '.join(registered) or 'none'}"
                )
        return names

    @model_validator(mode="after")
    def _are_metrics(self) -> "JudgingSettings":
        known = [*METRICS, *self.own_metrics]
        for key, names in (("gates", list(self.margins)), ("superior", [self.superior] if self.superior else [])):
            for name in names:
                if name not in known:
                    nearest = get_close_matches(name, known, 1, 0.0)[0]
                    raise ValueError(f"{key}: {name!r} is no metric; the nearest is {nearest}")
        self._check_margins()
        if self.superior in ("calibration_error", "lm_eval"):
            raise ValueError(f"superior: {self.superior} cannot be it: name a metric of single rows of the fresh slice")
        return self

    def _check_margins(self) -> None:
        """Refuse margins as large as all that a row can lose: such a gate would hold whatever a challenger does."""
        named = {_split(gate)[0] for gate in self.gates if _split(gate)[1] is not None}
        for name, margin in self.margins.items():
            if name not in METRICS:
                continue  # what a row of one's own can lose is known when it is loaded
            bound = METRICS[name].bound
            place = f"gates: {name}={margin:g}" if name in named else f"margin = {margin:g} of the gate {name}"
            if margin >= bound:
                raise ValueError(f"{place} would let everything pass, a row cannot lose more than {bound:g}: lower it")
            if name != "lm_eval" and margin * self.segment_factor >= bound:
                raise ValueError(
                    f"{place} times segment_factor = {self.segment_factor:g} is {margin * self.segment_factor:g}, and "
                    f"a row of a segment cannot lose more than {bound:g}: lower one of them"
                )

    @property
    def margins(self) -> dict[str, float]:
        """The gates by name, each with the largest loss that it accepts."""
        found = {}
        for gate in self.gates:
            name, margin = _split(gate)
            if margin is None:
                if name in self.own_metrics:
                    raise ValueError(f"gates: {name} is one's own, write {name}=MARGIN in its unit")
                default = METRICS[name].margin if name in METRICS else None
                margin = self.margin if default is None else default
            found[name] = margin
        return found


def _split(gate: str) -> tuple[str, float | None]:
    """Return a gate's metric and the margin that stands behind it, None where none does."""
    name, equals, text = (part.strip() for part in gate.partition("="))
    if not equals:
        return name, None
    try:
        margin = float(text)
    except ValueError:
        margin = math.nan
    if not 0 <= margin < math.inf:
        raise ValueError(f"{gate!r}: the margin behind = must be a number from 0 on, as in exact_match=0.02")
    return name, margin
