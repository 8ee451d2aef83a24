"""What can be set about learning: the student, its teacher and the training."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

LOCATION: JsonDict = {"location": True}  # where a thing lies, not what comes out: no part of a request's identity
Device = Literal["auto", "cpu", "cuda"]


class Section(BaseModel):
    """A table of the settings file: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StudentSettings(Section):
    """The model that serves."""

    name: str = Field(
        "student", pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="name in registry, events and Bento [a-z0-9_-]"
    )
    base: str = Field(
        "",
        description="folder or hub name of the causal LM that the first champion starts from",
        json_schema_extra=LOCATION,
    )
    max_prompt_tokens: int = Field(512, ge=1, description="longer prompts are cut at the front, and counted [tokens]")
    max_new_tokens: int = Field(32, ge=1, description="longest answer [tokens]")


class TeacherSettings(Section):
    """The model that knows."""

    model: str = Field("", description="folder or hub name of the teacher, a causal LM", json_schema_extra=LOCATION)
    top_k: int = Field(32, ge=1, description="log-probabilities kept for each answer token [count]")
    batch_size: int = Field(64, ge=1, description="prompts asked at once [rows]")
    device: Device = Field("auto", description="where teacher and scoring run [auto, cpu, cuda]")
    signals: str = Field(
        "", description="store of teacher signals; empty: WORKSPACE/signals", json_schema_extra=LOCATION
    )


class TrainingSettings(Section):
    """How the student learns."""

    epochs: float = Field(3.0, gt=0, description="passes over window and replay, from the champion's weights [epochs]")
    first_epochs: float = Field(6.0, gt=0, description="passes for the first champion, from the base [epochs]")
    learning_rate: float = Field(2e-3, gt=0, description="peak learning rate from the champion's weights [1/step]")
    first_learning_rate: float = Field(3e-3, gt=0, description="peak learning rate of the first champion [1/step]")
    warmup_steps: int = Field(50, ge=0, description="linear warm-up, then cosine to a tenth [steps]")
    batch_size: int = Field(64, ge=1, description="rows in one step, over all processes [rows]")
    micro_batch_size: int = Field(64, ge=1, description="rows in one forward pass of one process [rows]")
    replay_share: float = Field(
        1 / 3, ge=0, lt=1, description="share of the mixture drawn from earlier windows [share]"
    )
    cross_entropy_weight: float = Field(
        0.1, ge=0, description="weight of cross entropy on the teacher's answer beside the divergence [factor]"
    )
    prompt_weight: float = Field(0.05, ge=0, description="weight of cross entropy on the prompt's own tokens [factor]")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled weight decay [1/step]")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm [norm]")
    checkpoint_steps: int = Field(50, ge=1, description="a training checkpoint every so many steps [steps]")
    processes: int = Field(1, ge=1, description="training processes on this machine (FSDP2) [count]")
    device: Device = Field("auto", description="where the student trains [auto, cpu, cuda]")
    seed: int = Field(0, ge=0, description="of order and draws [integer]")

    @model_validator(mode="after")
    def _every_process_gets_as_many_rows(self) -> "TrainingSettings":
        if self.batch_size % self.processes:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of processes {self.processes}: choose one that is"
            )
        return self


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
