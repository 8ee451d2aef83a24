"""ReferenceProfile: frozen statistics of the world a champion was promoted in, as versioned JSON.

The reference data is read once, here. Drift is measured on the counts in profile.json; sample.parquet holds
some of the feature rows for pictures. Neither holds a prompt, nor an answer or category that fewer than
MIN_COUNT rows share.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from monitoring.columns import MAX_ROWS, CategoricalColumn, NumericColumn, build_column
from monitoring.errors import InputError
from monitoring.features import is_numeric, numbers
from monitoring.files import write_atomically
from monitoring.performance import Calibration
from monitoring.probe import Agreement

FORMAT: Final = 1
JSON_NAME = "profile.json"
SAMPLE_NAME = "sample.parquet"


class ReferenceProfile(BaseModel):
    """The statistics that windows are compared with; built once, saved, and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    window: str
    model_version: str
    rows: int = Field(gt=0, le=MAX_ROWS)
    schema_digest: str
    features: dict[str, Any] = {}  # the settings its features were made by
    calibration: Calibration | None = None  # None: too few labels to tell what its confidence is worth
    agreement: Agreement | None = None  # of champion and teacher; None: not asked
    columns: dict[str, Annotated[NumericColumn | CategoricalColumn, Field(discriminator="kind")]]
    _sample: pd.DataFrame = PrivateAttr()

    @model_validator(mode="after")
    def _counts_sum_to_rows(self) -> Self:
        for name, column in self.columns.items():
            set_aside = column.set_aside if isinstance(column, CategoricalColumn) else 0
            if sum(column.counted.cells.tolist()) + column.missing + set_aside != self.rows:
                raise ValueError(f"the counts of column {name!r} do not sum to {self.rows} rows")
        return self

    @model_validator(mode="after")
    def _digest_is_of_the_columns(self) -> Self:
        if self.schema_digest != (made := _schema_digest(self.columns)):
            raise ValueError(f"schema_digest {self.schema_digest:.12} is not that of its columns, {made:.12}")
        return self

    def __eq__(self, other: object) -> bool:
        """Profiles are equal when their statistics are, whatever rows the sample holds."""
        return isinstance(other, ReferenceProfile) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def build(
        cls,
        features: pd.DataFrame,
        *,
        window: str,
        model_version: str,
        max_categories: int,
        sample_rows: int,
        seed: int,
        feature_settings: Mapping[str, Any] | None = None,
        calibration: Calibration | None = None,
        agreement: Agreement | None = None,
    ) -> Self:
        """Make the profile of a frame of features; `window` and `model_version` say what it is a profile of.

        Raises InputError when the frame has no rows or a column twice.
        """
        named = features.rename(columns=str)
        if not len(named):
            raise InputError(f"no rows to make a reference profile of in {window}: choose a window with traffic")
        if not named.columns.is_unique:
            raise InputError(f"columns given twice: {sorted(set(named.columns[named.columns.duplicated()]))}")
        columns = {str(name): build_column(named[name], max_categories, seed) for name in named}
        profile = cls(
            window=window,
            model_version=model_version,
            rows=len(named),
            schema_digest=_schema_digest(columns),
            features=dict(feature_settings or {}),
            calibration=calibration,
            agreement=agreement,
            columns=columns,
        )
        chosen = np.random.default_rng(seed).permutation(len(named))[:sample_rows]
        profile._sample = profile.rows_for_pictures(named.iloc[np.sort(chosen)])
        return profile

    @property
    def sample(self) -> pd.DataFrame:
        """Some of the feature rows it was made of, rare categories as OTHER."""
        return self._sample

    def rows_for_pictures(self, features: pd.DataFrame, names: Iterable[str] | None = None) -> pd.DataFrame:
        """Return the profile's columns of the rows, or some of them; categories that are not kept are OTHER."""
        chosen = {name: self.columns[name] for name in (self.columns if names is None else names)}
        return pd.DataFrame(
            {
                name: numbers(features[name]) if isinstance(column, NumericColumn) else column.group(features[name])
                for name, column in chosen.items()
            },
            index=features.index,
        )

    def save(self, folder: str | Path) -> None:
        """Write sample.parquet and profile.json into the folder, each atomically; the profile comes last.

        Raises Failure when they cannot be written.
        """
        rows = io.BytesIO()
        self._sample.to_parquet(rows, engine="pyarrow", index=False)
        write_atomically(Path(folder) / SAMPLE_NAME, rows.getvalue())
        write_atomically(Path(folder) / JSON_NAME, self.model_dump_json(indent=1).encode())

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the profile that lies in the folder.

        Raises InputError, naming the file, when it or its sample is missing, corrupt, of another format version or
        does not fit the other.
        """
        path = Path(folder) / JSON_NAME
        text = _read(path)
        try:
            version = json.loads(text).get("format")
        except (ValueError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} is not a reference profile ({error}): {_REMEDY}") from error
        if version != FORMAT:
            raise InputError(f"{path} has format version {version!r}, this version reads {FORMAT}: {_REMEDY}")
        try:
            profile = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{path} is corrupt at {where or 'the top'}: {first['msg']}; {_REMEDY}") from error
        profile._sample = load_sample(folder)
        if misfit := _misfit(profile.columns, profile._sample):
            raise InputError(f"{Path(folder) / SAMPLE_NAME} does not fit {JSON_NAME} ({misfit}): {_REMEDY}")
        return profile


def load_sample(folder: str | Path) -> pd.DataFrame:
    """Return the feature rows that lie beside the profile, rare categories as OTHER.

    Raises InputError, naming the file, when they are missing or corrupt.
    """
    path = Path(folder) / SAMPLE_NAME
    content = _read(path)
    try:
        rows: pd.DataFrame = pq.ParquetFile(io.BytesIO(content)).read().replace_schema_metadata().to_pandas()
    except (pa.ArrowException, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is no readable Parquet file ({reason}): {_REMEDY}") from error
    return rows


def _misfit(columns: Mapping[str, NumericColumn | CategoricalColumn], sample: pd.DataFrame) -> str:
    """Say why rows are not of these columns; empty when they are."""
    names = [str(name) for name in sample.columns]
    if sorted(names) != sorted(columns):
        lacking, more = sorted(set(columns) - set(names)), sorted(set(names) - set(columns))
        return f"columns lacking: {lacking}, unknown: {more}, twice: {len(names) - len(set(names))}"
    odd = [name for name, of in columns.items() if isinstance(of, NumericColumn) != is_numeric(sample[name])]
    return f"columns of another type: {odd}" if odd else ""


_REMEDY = "restore it, or promote a champion again to make a new one"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the reference profile {path}: {error.strerror}; {_REMEDY}") from error


def _schema_digest(columns: dict[str, NumericColumn | CategoricalColumn]) -> str:
    schema = sorted((name, column.kind) for name, column in columns.items())
    return hashlib.sha256(json.dumps(schema).encode()).hexdigest()
