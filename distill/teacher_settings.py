"""What can be set about the teacher, and about asking it."""

from typing import Literal

from pydantic import Field, field_validator

from distill.settings import LOCATION, WHEN_SET, Device, Section, Words


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
    backend: Literal["local", "sglang", "openai"] = Field(
        "local",
        description="who runs the teacher: this process, SGLang servers, or any endpoint that speaks OpenAI's protocol "
        "and gives answers alone [local, sglang, openai]",
    )
    served_model: str = Field(
        "", description="openai: the teacher's name at the endpoint [name]", json_schema_extra=WHEN_SET
    )
    revision: str = Field(
        "",
        description="openai: what you call the weights behind that name; another one is another teacher, asked anew "
        "[text]",
        json_schema_extra=WHEN_SET,
    )
    endpoint: Literal["chat", "completions"] = Field(
        "chat",
        description="openai: /v1/chat/completions, where the endpoint's own template is put around a prompt, or "
        "/v1/completions, where nothing is [chat, completions]",
        json_schema_extra=WHEN_SET,
    )
    limit_name: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens",
        description="openai: what the endpoint calls the longest answer [max_tokens, max_completion_tokens]",
        json_schema_extra=LOCATION,
    )
    cross_tokenizer: bool = Field(
        False,
        description="the student may have another tokenizer: what both say alike is learned token by token, the rest "
        "by rank; topk alone [true, false]",
        json_schema_extra=WHEN_SET,
    )
    min_aligned: float = Field(
        0.5,
        ge=0,
        le=1,
        description="cross_tokenizer: with fewer answer tokens that stand where the same token of the teacher stood, "
        "nothing is trained [share]",
        json_schema_extra=LOCATION,
    )
    batch_size: int = Field(64, ge=1, description="local: prompts asked at once [rows]")
    device: Device = Field("auto", description="where a local teacher and scoring run [auto, cpu, cuda]")
    urls: tuple[str, ...] = Field(
        (),
        description="sglang: servers that all serve `teacher.model`, or their router; openai: endpoints of "
        "`teacher.served_model`, without /v1; in a list or between commas [http://HOST:PORT]",
        json_schema_extra=LOCATION,
    )
    serve: bool = Field(
        False,
        description="sglang: a retrain starts a server itself when it has to ask, and stops it [true, false]",
        json_schema_extra=LOCATION,
    )
    server_options: Words = Field(
        "",
        description="with `teacher.serve`: further words for that server, such as --tensor-parallel-size 4 "
        "[SGLang's options]",
        json_schema_extra=LOCATION,
    )
    start_seconds: float = Field(
        600.0,
        gt=0,
        description="longest time to start for a server that a retrain starts, the teacher's or the student's [s]",
        json_schema_extra=LOCATION,
    )
    api_key_secret: str = Field(
        "",
        description="sglang, openai: Prefect Secret block with the servers' API key; empty: REDISTILL_TEACHER_API_KEY "
        "[name]",
        json_schema_extra=LOCATION,
    )
    concurrency: int = Field(
        64, ge=1, description="sglang, openai: requests under way at once [count]", json_schema_extra=LOCATION
    )
    request_seconds: float = Field(
        300.0, gt=0, description="sglang, openai: longest time for one request [s]", json_schema_extra=LOCATION
    )
    outage_seconds: float = Field(
        300.0,
        gt=0,
        description="sglang, openai: so long all servers may be away before asking fails [s]",
        json_schema_extra=LOCATION,
    )
    job_seconds: float = Field(
        0.0,
        ge=0,
        description="sglang, openai: longest time for one list of prompts, of which a stage may ask several, such as "
        "its drawn samples or each round's scores; 0: no limit [s]",
        json_schema_extra=LOCATION,
    )
    price_prompt: float = Field(
        0.0, ge=0, description="what a million tokens of prompts cost [currency]", json_schema_extra=LOCATION
    )
    price_answer: float = Field(
        0.0, ge=0, description="what a million tokens of answers cost [currency]", json_schema_extra=LOCATION
    )
    currency: str = Field(
        "USD", pattern=r"^[A-Z]{3}$", description="of both prices [ISO 4217]", json_schema_extra=LOCATION
    )
    metrics_file: str = Field(
        "",
        pattern=r"^([^:]*\.prom)?$",
        description="textfile for node_exporter's collector that counts what was asked, NAME.prom, in the workspace "
        "unless it is absolute; empty: none",
        json_schema_extra=LOCATION,
    )
    signals: str = Field(
        "",
        description="store of teacher signals, a folder or fsspec URL; empty: WORKSPACE/signals",
        json_schema_extra=LOCATION,
    )

    @field_validator("urls", mode="before")
    @classmethod
    def _between_commas(cls, value: object) -> object:
        return [url.strip() for url in value.split(",") if url.strip()] if isinstance(value, str) else value
