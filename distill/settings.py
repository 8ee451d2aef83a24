"""What can be set about learning: the student and its training; teacher and mixture have files of their own."""

import shlex
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

LOCATION: JsonDict = {"location": True}  # where a thing lies, not what comes out: no part of a request's identity
# Part of a request's identity where it is not the default: requests from before there was such a setting stay the same.
WHEN_SET: JsonDict = {"when_set": True}
# Without effect while the student learns from the teacher's answers: no part of the identity of what was asked so.
ONLY_ON_POLICY: JsonDict = {"mode": "on_policy"}
Device = Literal["auto", "cpu", "cuda"]
Divergence = Literal[  # distill.loss.formulas has the formulas
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "adaptive_kl",
    "total_variation",
]
LossKernel = Literal["torch", "triton"]


def _can_be_split(text: str) -> str:
    try:
        shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{text!r} cannot be split into words ({error}): write them as for a shell") from error
    return text


Words = Annotated[str, AfterValidator(_can_be_split)]  # of a command line, as one text; no shell ever sees it


class Section(BaseModel):
    """A table of the settings file: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def identifies(field: FieldInfo, value: object, mode: str) -> bool:
    """Return whether a setting of this value is part of a request's identity, in this `training.mode`."""
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    unset = extra.get("when_set") and value == field.default
    return not (extra.get("location") or unset) and extra.get("mode", mode) == mode


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


class TrainingSettings(Section):
    """How the student learns."""

    mode: Literal["off_policy", "on_policy"] = Field(
        "off_policy",
        description="the student learns from the teacher's answers, or in rounds from its own as well, which the "
        "teacher scores (see on_policy) [off_policy, on_policy]",
        json_schema_extra=ONLY_ON_POLICY,
    )
    epochs: float = Field(3.0, gt=0, description="passes over window and replay, from the champion's weights [epochs]")
    first_epochs: float = Field(6.0, gt=0, description="passes for the first champion, from the base [epochs]")
    learning_rate: float = Field(2e-3, gt=0, description="peak learning rate from the champion's weights [1/step]")
    first_learning_rate: float = Field(3e-3, gt=0, description="peak learning rate of the first champion [1/step]")
    warmup_steps: int = Field(50, ge=0, description="linear warm-up, then cosine to a tenth [steps]")
    tokens_per_step: int = Field(
        2048, ge=1, description="tokens of prompts and answers in one step, over all processes [tokens]"
    )
    tokens_per_pass: int = Field(
        8192,
        ge=1,
        description="tokens and padding in one forward pass of one process [tokens]",
        json_schema_extra=LOCATION,
    )
    packing: bool = Field(
        True,
        description="rows share sequences, with attention to each its own; false: they are padded [true, false]",
        json_schema_extra=LOCATION,
    )
    replay_share: float = Field(
        1 / 3, ge=0, lt=1, description="share of the mixture drawn from earlier windows [share]"
    )
    divergence: Divergence | Literal["none"] = Field(
        "forward_kl",
        description="of the student from the teacher; none: cross entropy on its answers alone [forward_kl, "
        "reverse_kl, jensen_shannon, skewed_forward_kl, skewed_reverse_kl, adaptive_kl, total_variation, none]",
    )
    divergence_beta: float = Field(
        0.5, ge=0, lt=1, description="jensen_shannon's weight of the teacher, or how far the skewed ones mix [share]"
    )
    temperature: float = Field(
        1.0, gt=0, description="divides the logits of both in the divergence; not 1: top-k does not do [factor]"
    )
    live_teacher: bool = Field(
        False,
        description="the teacher runs in every training process, on its batches: only its answers are stored "
        "[true, false]",
    )
    hidden_weight: float = Field(
        0.0, ge=0, description="weight of the distance of hidden states: a live teacher, or hidden signals [factor]"
    )
    attention_weight: float = Field(
        0.0, ge=0, description="weight of the divergence of attention maps: a live teacher [factor]"
    )
    layers: str = Field(
        "last",
        pattern=r"^(last|uniform|\s*(\d+|last):(\d+|last)\s*(,\s*(\d+|last):(\d+|last)\s*)*)$",
        description="which layers both compare: last, uniform, or pairs as in 2:4,last:last [STUDENT:TEACHER]",
    )
    cross_entropy_weight: float = Field(
        0.1, ge=0, description="weight of cross entropy on the teacher's answer beside the divergence [factor]"
    )
    uld_weight: float = Field(
        0.5,
        ge=0,
        description="teacher.cross_tokenizer: weight of the distance of sorted probabilities where tokens differ "
        "[factor]",
        json_schema_extra=WHEN_SET,
    )
    prompt_weight: float = Field(0.05, ge=0, description="weight of cross entropy on the prompt's own tokens [factor]")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled weight decay [1/step]")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm [norm]")
    checkpoint_steps: int = Field(50, ge=1, description="a training checkpoint every so many steps [steps]")
    keep_checkpoints: int = Field(
        2, ge=1, description="newest training checkpoints kept, besides the best [count]", json_schema_extra=LOCATION
    )
    validation_share: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share of the mixture never learned from, to find the best step; 0: judge alone decides [share]",
    )
    validation_steps: int = Field(50, ge=1, description="validation every so many steps, and after the last [steps]")
    patience: int = Field(
        0, ge=0, description="validations without a better one before training stops; 0: never [count]"
    )
    loss_spike: float = Field(
        10.0, ge=0, description="a loss above so many times the median stops the training; 0: never [factor]"
    )
    norm_spike: float = Field(
        100.0, ge=0, description="the same for the gradient norm before clipping; 0: never [factor]"
    )
    spike_steps: int = Field(20, ge=3, description="steps the medians are taken over; none stops before [steps]")
    processes: int = Field(
        1, ge=1, description="training processes on each machine (FSDP2) [count]", json_schema_extra=LOCATION
    )
    nodes: int = Field(1, ge=1, description="machines that train together [count]", json_schema_extra=LOCATION)
    node_rank: int = Field(
        0,
        ge=0,
        description="which of them this one is, below nodes; 0 hosts the rendezvous [number]",
        json_schema_extra=LOCATION,
    )
    rendezvous: str = Field(
        "",
        pattern=r"^$|^[^\s/]+:\d{1,5}$",
        description="machine 0, where the others find it; more than one machine needs it [HOST:PORT]",
        json_schema_extra=LOCATION,
    )
    rendezvous_seconds: float = Field(
        600.0, gt=0, description="how long a machine waits for the others [s]", json_schema_extra=LOCATION
    )
    restarts: int = Field(
        0, ge=0, description="new starts after a process or machine was lost [count]", json_schema_extra=LOCATION
    )
    replicas: int = Field(
        1,
        ge=1,
        description="whole copies of the student, each sharded over its part of all processes (HSDP) [count]",
        json_schema_extra=LOCATION,
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of passes; weights, moments and sums of gradients stay in fp32 [fp32, bf16]"
    )
    checkpoint_activations: bool = Field(
        False,
        description="work out a block's activations again in the backward pass: less memory, more time [true, false]",
        json_schema_extra=LOCATION,
    )
    cpu_offload: bool = Field(
        False, description="keep weights and moments in the CPU's memory [true, false]", json_schema_extra=LOCATION
    )
    compile: bool = Field(
        False,
        description="compile the student's blocks (torch.compile): slow at first [true, false]",
        json_schema_extra=LOCATION,
    )
    loss_kernel: LossKernel = Field(
        "torch",
        description="what works out the divergence on a CUDA device; triton does where it can [torch, triton]",
        json_schema_extra=LOCATION,
    )
    lora_rank: int = Field(
        0, ge=0, description="rank of adapters that learn in place of the weights; 0: all weights learn [count]"
    )
    lora_alpha: float = Field(32.0, gt=0, description="adapters count alpha / rank [factor]")
    lora_targets: str = Field(
        "all-linear",
        min_length=1,
        description="linear layers that get adapters: with commas, or all-linear for those of all blocks [names]",
    )
    device: Device = Field("auto", description="where the student trains [auto, cpu, cuda]")
    seed: int = Field(0, ge=0, description="of order and draws [integer]")

    @model_validator(mode="after")
    def _machines_find_each_other(self) -> "TrainingSettings":
        if self.node_rank >= self.nodes:
            raise ValueError(f"node_rank {self.node_rank} is none of {self.nodes} nodes: they count from 0")
        if self.nodes > 1 and not self.rendezvous:
            raise ValueError(f"nodes = {self.nodes} needs rendezvous = HOST:PORT of machine 0")
        return self

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> "TrainingSettings":
        if self.divergence == "jensen_shannon" and not self.divergence_beta:
            raise ValueError("jensen_shannon with divergence_beta = 0 is 0 always: choose one between 0 and 1")
        if self.divergence == "none" and not self.cross_entropy_weight:
            raise ValueError(
                "without a divergence the teacher's answers are learned by cross entropy alone: set "
                "cross_entropy_weight above 0, as to 1"
            )
        if self.patience and not self.validation_share:
            raise ValueError(
                f"patience = {self.patience} waits for validations, and validation_share = 0 makes none: set it above 0"
            )
        return self
