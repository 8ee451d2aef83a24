"""What can be set about the rows that are learned, and about checking what the teacher said of them."""

from pydantic import Field

from distill.settings import Section


class MixtureSettings(Section):
    """Which rows the student learns from, and how much each counts."""

    drift_weight: float = Field(
        1.5, gt=0, description="weight of a window's row that champion and teacher answer differently [factor]"
    )
    class_balance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="a row weighs its answer's frequency to the power of minus this; 0: no balance [power]",
    )
    max_weight: float = Field(10.0, ge=1, description="no row weighs more than so many mean rows [factor]")
    near_duplicates: float = Field(
        0.9,
        ge=0,
        le=1,
        description="of prompts whose token shingles are as similar, with one answer, one is learned; 0: no such look "
        "[Jaccard similarity]",
    )
    segments: str = Field(
        "",
        pattern=r"^(answer|meta_.+)?$",
        description="what replay is drawn evenly over: a meta_ column, or answer; empty: all meta_ columns of few "
        "values together, else answer [name]",
    )
    evenness: float = Field(
        0.5,
        ge=0,
        le=1,
        description="replay of a segment goes by its rows (0), is the same for all (1), or between [power]",
    )
    error_share: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="share of the rows that the teacher is sure of and the champion answers differently that is never "
        "learned: the teacher-error set [share]",
    )
    error_rows: int = Field(200, ge=0, description="largest teacher-error set [rows]")
    sure_logprob: float = Field(
        -0.1,
        lt=0,
        description="the teacher is sure of an answer whose mean token log-probability is at least this [nats]",
    )


class AuditSettings(Section):
    """What of the teacher's answers is not believed."""

    labels: bool = Field(True, description="rows whose label is not the teacher's answer are not learned [true, false]")
    samples: int = Field(0, ge=0, description="answers sampled from the teacher for a row; 0: none [count]")
    sample_rows: int = Field(256, ge=0, description="rows asked for samples, the drifted ones first [rows]")
    temperature: float = Field(1.0, gt=0, description="temperature of the samples [factor]")
    agreement: float = Field(
        0.5, ge=0, le=1, description="rows are not learned when fewer of their samples are the greedy answer [share]"
    )
    min_logprob: float = Field(
        0.0,
        le=0,
        description="rows are not learned whose mean token log-probability is lower for the teacher; 0: all are [nats]",
    )
