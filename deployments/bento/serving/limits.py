"""What a request may ask: its shape, its limits, and the words in which a bad one is refused.

A request is checked alone, before any of it joins a batch: a bad one fails no other. Prompts are personal data, so a
refusal names the field and what is wrong with it, and quotes nothing that was sent.
"""

import hmac
import os
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

DRAIN = 4  # an oversized body is read up to so many times the limit, so that its sender hears why


@dataclass(frozen=True)
class Limits:
    """What a request may ask at most; `model.json` holds one number of each name."""

    max_prompts: int  # [prompts/request]
    max_prompt_chars: int  # [characters]
    max_body_bytes: int  # [bytes]
    max_new_tokens: int  # of an answer [tokens]
    max_latency_ms: int  # from the first byte to the answer [ms]
    max_waiting: int  # [prompts]

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> "Limits":
        """Return the limits that a Bento was built with."""
        return cls(**{name: int(model[name]) for name in cls.__dataclass_fields__})


class Refusal(Exception):
    """A request that is not answered: status, reason, and where the fault lies if it is in the body."""

    def __init__(self, status: int, reason: str, detail: list[dict[str, Any]] | None = None, **headers: str) -> None:
        super().__init__(reason)
        self.status, self.reason, self.detail = status, reason, detail or []
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Asked(BaseModel):
    """A request that keeps to the limits."""

    # Without hide_input_in_errors a bad prompt would be quoted in the server's log.
    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    prompts: list[str]
    max_new_tokens: int
    deadline_ms: int


def fault(prompt: str) -> str | None:
    """Return why no model is asked such a prompt, or None."""
    if "\0" in prompt:
        return "holds a null byte"
    return None if re.search(r"\S", prompt) else "is empty or only white space"


def request_model(limits: Limits) -> type[Asked]:
    """Return the model of a request's body; its JSON schema tells the limits."""

    def usable(prompt: str) -> str:
        if reason := fault(prompt):
            raise ValueError(reason)
        return prompt

    pattern = {"pattern": r"^[^\u0000]*[^\s\u0000][^\u0000]*$", "minLength": 1}
    prompt = Annotated[
        str, Field(max_length=limits.max_prompt_chars, json_schema_extra=dict(pattern)), AfterValidator(usable)
    ]
    most, longest = limits.max_new_tokens, limits.max_latency_ms
    fields: dict[str, Any] = {
        "prompts": (
            list[prompt],
            Field(min_length=1, max_length=limits.max_prompts, description="each is answered alone [prompts]"),
        ),
        "max_new_tokens": (int, Field(most, ge=1, le=most, description="an answer ends here at last [tokens]")),
        "deadline_ms": (
            int,
            Field(longest, ge=1, le=longest, description="a request that takes longer is given up with 504 [ms]"),
        ),
    }
    return create_model("Request", __base__=Asked, **fields)


def parse(body: bytes, model: type[Asked]) -> Asked:
    """Return the request in a body; raises Refusal (400) that says what is wrong where, and quotes nothing."""
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the body is not UTF-8, from byte {error.start} on") from None
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        detail = [
            {"loc": _told(each["loc"], model), "msg": each["msg"].removeprefix("Value error, "), "type": each["type"]}
            for each in found[:16]
        ]
        first = detail[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise Refusal(400, f"{where}: {first['msg']}{more}", detail) from None


def _told(loc: tuple[int | str, ...], model: type[Asked]) -> list[int | str]:
    """Return where a fault lies; the name of a field that there is not may itself be a prompt, and is not told."""
    return [part if isinstance(part, int) or part in model.model_fields else "(unknown field)" for part in loc]


def key_of(variable: str) -> str:
    """Return the key that requests must show, from the environment; raises RuntimeError when it should be there."""
    key = os.environ.get(variable, "").strip() if variable else ""  # files of secrets end with a line end
    if variable and not key:
        raise RuntimeError(f"the environment variable {variable} (packaging.api_key_env) holds no key: set it")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise RuntimeError(
            f"the key in the environment variable {variable} (packaging.api_key_env) cannot stand in a header: use "
            "printable ASCII without spaces"
        )
    return key


def check_key(header: str | None, key: str) -> None:
    """Raise Refusal (401) unless there is no key to know, or `header` is "Bearer KEY"."""
    scheme, _, shown = (header or "").partition(" ")
    # Compared as bytes: compare_digest refuses text beyond ASCII.
    known = hmac.compare_digest(shown.strip().encode("utf-8", "replace"), key.encode())
    if key and not (known and scheme.lower() == "bearer"):  # RFC 9110: a scheme's case says nothing
        raise Refusal(
            401, "the Authorization header is not 'Bearer' and the key of this service", www_authenticate="Bearer"
        )


def check_type(header: str | None) -> None:
    """Raise Refusal (415) for a body that says that it is no JSON."""
    if header is not None and header.partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "the Content-Type header is not application/json")


async def read(chunks: AsyncIterator[bytes], most: int) -> bytes:
    """Return a body of at most `most` bytes; raises Refusal (413) for a longer one."""
    kept, size = bytearray(), 0
    async for chunk in chunks:
        size += len(chunk)
        if size <= most:
            kept += chunk
        elif size > DRAIN * most:
            break
    if size > most:
        raise Refusal(413, f"the body is longer than {most} bytes: send fewer prompts in a request", connection="close")
    return bytes(kept)
