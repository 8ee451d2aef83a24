"""What can be set about shipping: the registry, promotion and the Bento."""

from importlib.util import find_spec
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.config import JsonDict

LOCATION: JsonDict = {"location": True}  # where a thing lies, not what comes out: no part of a request's identity


class Section(BaseModel):
    """A table of the settings file: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RegistrySettings(Section):
    """MLflow."""

    uri: str = Field("", description="MLflow tracking URI; empty: SQLite in the workspace", json_schema_extra=LOCATION)
    artifacts: str = Field(
        "",
        description="artifact location of a new experiment; empty: WORKSPACE/mlartifacts",
        json_schema_extra=LOCATION,
    )
    timeout: float = Field(
        10.0, gt=0, description="a registry that does not answer by then is unreachable [s]", json_schema_extra=LOCATION
    )

    wandb: Literal["", "offline", "online"] = Field(
        "",
        description="track each retrain in Weights & Biases besides; empty: do not [offline, online]",
        json_schema_extra=LOCATION,
    )
    wandb_project: str = Field(
        "redistill", min_length=1, description="project in Weights & Biases [name]", json_schema_extra=LOCATION
    )
    wandb_key_secret: str = Field(
        "",
        description="online: Prefect Secret block with its API key; empty: WANDB_API_KEY [name]",
        json_schema_extra=LOCATION,
    )
    wandb_timeout: float = Field(
        120.0,
        gt=0,
        description="longest time for writing a run there, and for sending it [s]",
        json_schema_extra=LOCATION,
    )

    @field_validator("wandb")
    @classmethod
    def _wandb_is_installed(cls, mode: str) -> str:
        if mode and find_spec("wandb") is None:
            raise ValueError("the package wandb is not installed: pip install 'redistill[wandb]', or leave it empty")
        return mode

    @field_validator("uri")
    @classmethod
    def _has_no_password(cls, uri: str) -> str:
        if uri.startswith("http") and "@" in uri:
            raise ValueError("credentials belong into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, not here")
        return uri


class PromotionSettings(Section):
    """Who lets a challenger through."""

    approval: Literal["auto", "manual"] = Field(
        "auto",
        description="auto: the verdict; manual: a person, on top of a verdict that has not failed [auto, manual]",
        json_schema_extra=LOCATION,
    )
    timeout_hours: float = Field(
        24.0,
        gt=0,
        le=24 * 365,
        description="a challenger that nobody has approved by then is held [hours]",
        json_schema_extra=LOCATION,
    )


class PackagingSettings(Section):
    """The Bento and its smoke test."""

    home: str = Field("", description="Bento store; empty: WORKSPACE/bentoml", json_schema_extra=LOCATION)
    port: int = Field(
        0,
        ge=0,
        le=65535,
        description="loopback port of the smoke test; 0 takes a free one [port]",
        json_schema_extra=LOCATION,
    )
    timeout: float = Field(
        180.0, gt=0, description="a Bento that is not ready by then has failed [s]", json_schema_extra=LOCATION
    )
    smoke_rows: int = Field(
        8, ge=1, description="held-out prompts asked in the smoke test [rows]", json_schema_extra=LOCATION
    )
    format: Literal["torch", "onnx-int8"] = Field(
        "torch",
        description="torch: the checkpoint's own weights; onnx-int8: 8-bit weights for CPUs by ONNX Runtime, whose "
        "answers may differ [torch, onnx-int8]",
    )
    min_agreement: float = Field(
        0.9,
        ge=0,
        le=1,
        description="onnx-int8 only: packaging stops when 8-bit weights choose the checkpoint's own token less often "
        "[share of tokens]",
    )
    agreement_rows: int = Field(
        500, ge=1, description="onnx-int8 only: held-out prompts on which agreement and speed are measured [rows]"
    )
    max_batch_size: int = Field(32, ge=1, description="prompts answered in one batch [prompts]")
    max_waiting: int = Field(1024, ge=1, description="when more prompts would wait, a request gets 503 [prompts]")
    max_latency_ms: int = Field(
        60_000, ge=1, description="a request that is not answered by then gets 504; it may ask for less [ms]"
    )
    max_prompts: int = Field(256, ge=1, description="a request with more prompts gets 400 [prompts]")
    max_prompt_chars: int = Field(20_000, ge=1, description="a longer prompt gets its request 400 [characters]")
    max_body_bytes: int = Field(8_000_000, ge=1024, description="a longer request gets 413 [bytes]")
    api_key_env: str = Field(
        "",
        pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$",
        description="environment variable with the key of the service (`Authorization: Bearer KEY`); empty: no key",
    )

    @model_validator(mode="after")
    def _a_whole_request_can_wait(self) -> Self:
        if self.max_prompts > self.max_waiting:
            raise ValueError(
                f"max_prompts = {self.max_prompts} is more than max_waiting = {self.max_waiting}: such a request could "
                "hardly ever wait; lower the one or raise the other"
            )
        return self

    @field_validator("format")
    @classmethod
    def _is_installed(cls, chosen: str) -> str:
        if chosen == "onnx-int8" and (missing := [name for name in ("onnx", "onnxruntime") if not find_spec(name)]):
            raise ValueError(f"needs {' and '.join(missing)}: pip install 'redistill[onnx]', or choose torch")
        return chosen
