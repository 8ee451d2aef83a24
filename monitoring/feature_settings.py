"""What can be set about the features that drift is measured on."""

import re
from difflib import get_close_matches

from pydantic import Field, field_validator

from monitoring.extensions import own_names
from monitoring.settings import Section

ALL_META = "meta_*"  # every meta_ column of the log
FEATURES = (
    *("prompt_chars", "prompt_words", "token_count", "unknown_rate", "type_token_ratio", "char_entropy", "zlib_ratio"),
    *("non_ascii_share", "topic", "refusal", "response", "mean_logprob", "latency_ms", ALL_META),
)
USED = tuple(name for name in FEATURES if name not in ("char_entropy", "zlib_ratio"))  # they go with the length
REFUSAL = r"(?i)^\W*((i.m|i am) (very |so )?(sorry|unable|not able)|sorry,? (but )?i|i (cannot|can.t|won.t)|as an ai)\b"


class FeatureSettings(Section):
    """Which features of the traffic drift is measured on."""

    use: tuple[str, ...] = Field(
        USED,
        min_length=1,
        description="columns compared, in a list or between commas; there are also char_entropy, zlib_ratio, one meta_ "
        "column by its name, and one's own entry points of redistill.features [names]",
    )
    refusal: str = Field(
        REFUSAL,
        min_length=1,
        description="a response in which this is found counts as a refusal [regular expression]",
    )
    word_pieces: int = Field(
        2,
        ge=1,
        description="a byte-level tokenizer does not know a word that it splits into more than this [tokens]",
    )

    @field_validator("use", mode="before")
    @classmethod
    def _names_between_commas(cls, value: object) -> object:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_validator("use")
    @classmethod
    def _are_features(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is named twice")
        unknown = [name for name in names if name not in FEATURES and not re.fullmatch(r"meta_[^*]+", name)]
        own = own_names() if unknown else []
        for name in unknown:
            if name not in own:
                nearest = get_close_matches(name, [*FEATURES, *own], 1, 0.0)[0]
                raise ValueError(
                    f"{name!r} is no feature, nor an entry point of redistill.features; the nearest is {nearest}"
                )
        return names

    @field_validator("refusal")
    @classmethod
    def _is_a_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return pattern
