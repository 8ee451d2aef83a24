"""What can be set about learning from the student's own answers."""

from typing import Literal

from pydantic import Field, field_validator

from distill.settings import LOCATION, ONLY_ON_POLICY, Divergence, Section, Words


class OnPolicySettings(Section):
    """How sampling and training take turns; of effect with `training.mode` on_policy alone."""

    rounds: int = Field(
        4, ge=1, description="times that the student answers and then learns [count]", json_schema_extra=ONLY_ON_POLICY
    )
    share: float = Field(
        0.25,
        gt=0,
        le=1,
        description="share of a round's rows that the student answers itself; the others have the teacher's answers "
        "[share]",
        json_schema_extra=ONLY_ON_POLICY,
    )
    divergence: Divergence = Field(
        "reverse_kl",
        description="of the student from the teacher on the student's own answers, as `training.divergence` is on the "
        "others; beta and temperature are the same [as there]",
        json_schema_extra=ONLY_ON_POLICY,
    )
    temperature: float = Field(
        1.0, gt=0, description="temperature of the student's answers [factor]", json_schema_extra=ONLY_ON_POLICY
    )
    sampler: Literal["local", "sglang"] = Field(
        "local",
        description="who runs the student while it answers: this process, or SGLang servers [local, sglang]",
        json_schema_extra=ONLY_ON_POLICY,
    )
    urls: tuple[str, ...] = Field(
        (),
        description="sampler sglang: servers that are given the student's weights each round; empty: one is started "
        "[http://HOST:PORT]",
        json_schema_extra=LOCATION,
    )

    server_options: Words = Field(
        "",
        description="sampler sglang without `on_policy.urls`: further words for the server that is started "
        "[SGLang's options]",
        json_schema_extra=LOCATION,
    )

    @field_validator("urls", mode="before")
    @classmethod
    def _between_commas(cls, value: object) -> object:
        return [url.strip() for url in value.split(",") if url.strip()] if isinstance(value, str) else value
