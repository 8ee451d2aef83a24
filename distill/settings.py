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
    signals_format: str = Field(
        "",
        pattern=r"^(|topk:[1-9]\d*|hidden:(bf16|int8|svd[1-9]\d*))$",
        description="what is kept of the teacher: topk:K, or its final states as hidden:bf16, hidden:int8 or "
        "hidden:svdR (R directions); empty: topk:`teacher.top_k`",
    )
    batch_size: int = Field(64, ge=1, description="prompts asked at once [rows]")
    device: Device = Field("auto", description="where teacher and scoring run [auto, cpu, cuda]")
    signals: str = Field(
        "",
        description="store of teacher signals, a folder or fsspec URL; empty: WORKSPACE/signals",
        json_schema_extra=LOCATION,
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
