"""All settings: the packages' own, composed. TOML file < environment < command line.

[training]                                      in the file
epochs = 2
REDISTILL_TRAINING__EPOCHS=2                    in the environment
python -m flows.retrain --training.epochs 2     at the prompt
"""

import os
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from deployments.connection import masked
from deployments.settings import PackagingSettings, PromotionSettings, RegistrySettings
from distill.disagreement import disagreement, shared, unknown
from distill.mixture_settings import AuditSettings, MixtureSettings
from distill.on_policy_settings import OnPolicySettings
from distill.settings import StudentSettings, TrainingSettings, identifies
from distill.teacher_settings import TeacherSettings
from monitoring.feature_settings import FeatureSettings
from monitoring.judging_settings import JudgingSettings
from monitoring.settings import (
    DriftSettings,
    PolicySettings,
    ProbeSettings,
    ReferenceSettings,
    TrafficSettings,
)

PREFIX = "REDISTILL_"
MODELS = ("student.base", "teacher.model")  # folders, or names on a hub
LOCAL = ("workspace", "packaging.home")  # folders of this machine
# The others may be URLs, or names on a hub.
FOLDERS = (*LOCAL, "traffic.path", "teacher.signals", "registry.artifacts", "judging.golden", *MODELS)
SQLITE = "sqlite:///"
# The tests' data file and what they may not lack; the settings file; what no file holds; where SGLang is installed.
NOT_SETTINGS = {
    "REDISTILL_ARXIV",
    "REDISTILL_CONFIG",
    "REDISTILL_REQUIRE_POSTGRES",
    "REDISTILL_TEACHER_API_KEY",
    "REDISTILL_SGLANG_PYTHON",
}
LOCATION: JsonDict = {"location": True}
# What earlier settings files have: nearest in meaning, not in spelling.
RENAMED = {"training.batch_size": "training.tokens_per_step", "training.micro_batch_size": "training.tokens_per_pass"}


NO_WORKSPACE = "workspace is empty: set it in --config FILE, REDISTILL_WORKSPACE or --workspace FOLDER"


class SettingsError(ValueError):
    """A key, a type or a value that cannot be used; the message is one line."""


class Settings(BaseSettings):
    """Everything that can be set; `load` reads it from its sources."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_nested_max_split=1,
        enable_decoding=False,  # a list is written with commas, as on the command line, not as JSON
    )

    workspace: str = Field(
        "",
        description="folder of the runs, and of all that has no place of its own",
        json_schema_extra=LOCATION,
    )
    student: StudentSettings = StudentSettings()
    teacher: TeacherSettings = TeacherSettings()
    mixture: MixtureSettings = MixtureSettings()
    audit: AuditSettings = AuditSettings()
    training: TrainingSettings = TrainingSettings()
    on_policy: OnPolicySettings = OnPolicySettings()
    traffic: TrafficSettings = TrafficSettings()
    reference: ReferenceSettings = ReferenceSettings()
    features: FeatureSettings = FeatureSettings()
    drift: DriftSettings = DriftSettings()
    policy: PolicySettings = PolicySettings()
    probe: ProbeSettings = ProbeSettings()
    judging: JudgingSettings = JudgingSettings()
    registry: RegistrySettings = RegistrySettings()
    promotion: PromotionSettings = PromotionSettings()
    packaging: PackagingSettings = PackagingSettings()

    @model_validator(mode="after")
    def _quality_can_be_low(self) -> "Settings":
        if "performance" in self.policy.chosen and not self.drift.quality_floor:
            raise PydanticCustomError(
                "settings_together",
                "performance is among the triggers, but there is no floor: set drift.quality_floor above 0",
                {"keys": ("policy.triggers", "drift.quality_floor")},
            )
        return self

    @model_validator(mode="after")
    def _teacher_gives_what_training_takes(self) -> "Settings":
        found = (
            disagreement(self.teacher, self.training),
            unknown(self.teacher, self.mixture, self.audit),
            shared(self.teacher, self.training, self.on_policy),
        )
        if wrong := [each for each in found if each]:
            keys = tuple(dict.fromkeys(key for _, keys in wrong for key in keys))
            problem = "; ".join(told for told, _ in wrong)
            raise PydanticCustomError("settings_together", "{problem}", {"problem": problem, "keys": keys})
        return self

    @classmethod
    def settings_customise_sources(  # type: ignore[override]
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, **others: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take exactly the values that are passed in: `load` has read and merged the sources by then."""
        return (init_settings,)

    def place(self, given: str, default: str) -> str:
        """Return `given`, or else the path `default` inside the workspace."""
        if "://" in given:
            return given
        return str(Path(self.workspace).expanduser().absolute() / Path(given or default).expanduser())


def load(config: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings of a TOML file, the environment and `overrides` (nested), the later before the earlier.

    Without `config` the file that $REDISTILL_CONFIG names is read, if it is set.
    Raises SettingsError, one line with key, value, origin and the nearest valid key.
    """
    config = config or os.environ.get("REDISTILL_CONFIG")
    sources: list[tuple[str, Mapping[str, Any]]] = [
        ("the command line", overrides or {}),
        ("the environment", _environment()),
        (f"{config}", _file(config) if config else {}),
    ]
    merged: dict[str, Any] = {}
    for _, values in reversed(sources):
        _merge(merged, values)
    try:
        chosen = Settings(**merged)
    except ValidationError as error:
        raise SettingsError(masked(_one_line(error, sources))) from None
    for key in LOCAL:
        if "://" in (value := value_at(chosen.model_dump(), key)):
            raise SettingsError(
                f"{key} = {masked(value)!r}: this is a folder of this machine; only traffic.path, "
                "teacher.signals and registry.artifacts can be URLs"
            )
    return chosen


def setting_keys(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield each setting's dotted key and field, tables before what is in them left out."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from setting_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def result_changing(settings: Settings) -> dict[str, Any]:
    """Return the settings that change what comes out, by dotted key; places, ports and time limits are left out."""
    changing = {}
    for key, field in setting_keys():
        value = value_at(settings.model_dump(mode="json"), key)
        if identifies(field, value, settings.training.mode):
            changing[key] = value
    return changing


def shown_default(field: FieldInfo) -> str:
    """Return a setting's default as it is written at the prompt; a list has commas between its values."""
    return ",".join(field.default) if isinstance(field.default, tuple) else str(field.default)


def value_at(values: Mapping[str, Any], key: str) -> Any:
    """Return what lies at a dotted key."""
    found: Any = values
    for part in key.split("."):
        found = found[part]
    return found


def _file(config: str | Path) -> dict[str, Any]:
    path = Path(config).expanduser()
    try:
        return _anchored(tomllib.loads(path.read_text(encoding="utf-8")), path.absolute().parent)
    except FileNotFoundError:
        raise SettingsError(f"--config {str(config)!r}: there is no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"--config {str(config)!r} cannot be read as TOML: {error}") from None


def _anchored(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the file's values with relative folders taken from where the file lies; hub names and URLs stay."""
    for key in FOLDERS:
        *tables, name = key.split(".")
        table: Any = values
        for part in tables:
            table = table.get(part, {}) if isinstance(table, dict) else {}
        value = table.get(name) if isinstance(table, dict) else None
        if isinstance(value, str) and value and "://" not in value:
            found = folder / Path(value).expanduser()
            if found.exists() or key not in MODELS:
                table[name] = str(found)
    judging = values.get("judging")
    if isinstance(judging, dict) and isinstance(judging.get("lm_eval"), list):  # files, or names of installed tasks
        own = [folder / name if isinstance(name, str) else name for name in judging["lm_eval"]]
        judging["lm_eval"] = [
            str(file) if isinstance(file, Path) and file.is_file() else name
            for name, file in zip(judging["lm_eval"], own, strict=True)
        ]
    registry = values.get("registry")
    if isinstance(registry, dict) and isinstance(registry.get("uri"), str):
        registry["uri"] = database_in(folder, registry["uri"])
    return values


def database_in(folder: Path, uri: str) -> str:
    """Return the address of a registry, the file of a local one taken from `folder` when it is relative."""
    file = uri.removeprefix(SQLITE)
    if file == uri or file in ("", ":memory:"):
        return uri
    return SQLITE + str(folder / Path(file).expanduser())


def _environment() -> dict[str, Any]:
    known = {PREFIX + key.replace(".", "__").upper() for key, _ in setting_keys()}
    for name in os.environ:
        if name.upper().startswith(PREFIX) and name.upper() not in known | NOT_SETTINGS:
            nearest = get_close_matches(name.upper(), sorted(known), 1, 0.0)[0]
            raise SettingsError(f"{name} in the environment is no setting; the nearest is {nearest}")
    return EnvSettingsSource(Settings)()


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _one_line(error: ValidationError, sources: list[tuple[str, Mapping[str, Any]]]) -> str:
    first = error.errors(include_url=False)[0]
    together = first.get("ctx", {}).get("keys", ())  # of several tables: then there is no one place
    places = [tuple(key.split(".")) for key in together] or [first["loc"]]
    key = " and ".join(".".join(str(part) for part in place) for place in places)
    origins = [name for name, values in sources if any(_has(values, place) for place in places)] or ["the defaults"]
    origin = " and ".join(origins) if isinstance(first["input"], Mapping) else origins[0]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        valid = [name for name, _ in setting_keys()] if "." in key else list(Settings.model_fields)
        nearest = RENAMED.get(key) or get_close_matches(key, valid, 1, 0.0)[0]
        return f"{key} = {first['input']!r} in {origin} is no setting; the nearest is {nearest}{more}"
    message = first["msg"].removeprefix("Value error, ")
    value = "" if isinstance(first["input"], Mapping) else f" = {first['input']!r}"
    return f"{key}{value} in {origin}: {message}{more}"


def _has(values: Any, location: tuple[int | str, ...]) -> bool:
    for part in location:
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def markdown() -> str:
    """Return every setting as a Markdown table; README holds it, and a test keeps the two alike."""
    lines = ["| setting | default | what it is |", "|---|---|---|"]
    for key, field in setting_keys():
        default = shown_default(field).replace("|", r"\|")  # else it would end the cell
        shown = f"`{default}`" if default else ""
        lines.append(f"| `{key}` | {shown} | {str(field.description).replace('%%', '%')} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
