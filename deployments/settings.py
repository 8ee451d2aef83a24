"""What can be set about shipping: the registry and the Bento."""

from importlib.util import find_spec
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
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
    max_batch_size: int = Field(32, ge=2, description="requests answered in one batch [requests]")
    max_latency_ms: int = Field(
        60_000, ge=1, description="a request that would wait longer than this is answered with 503 [ms]"
    )
