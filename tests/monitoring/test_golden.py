"""The golden set: what is read of its file, and that a file with a row that cannot be used is refused."""

from pathlib import Path

import pandas as pd
import pytest

from monitoring.errors import InputError
from monitoring.golden import golden_digest, read_golden

ROWS = pd.DataFrame(
    {
        "request_id": ["a", "b", "c"],
        "prompt": ["The printer is off", "log in", 'a, "b"\nand c'],
        "reference": ["technical", "account", "billing"],
        "meta_region": ["north", None, "south"],
        "note": ["asked by the manager", "", ""],
    }
)


def written(folder: Path, rows: pd.DataFrame, ending: str) -> str:
    path = folder / f"golden.{ending}"
    {
        "csv": lambda: rows.to_csv(path, index=False),
        "jsonl": lambda: rows.to_json(path, orient="records", lines=True),
        "parquet": lambda: rows.to_parquet(path),
    }[ending]()
    return str(path)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_it_says_the_same_in_every_format(tmp_path: Path, ending: str) -> None:
    found = read_golden(written(tmp_path, ROWS, ending))
    assert found.columns.tolist() == ["request_id", "prompt", "reference", "meta_region"]
    assert found["prompt"].tolist() == ROWS["prompt"].tolist()
    assert found["meta_region"].isna().tolist() == [False, True, False]
    assert golden_digest(found) == golden_digest(read_golden(written(tmp_path, ROWS, "parquet")))


def test_rows_without_ids_are_numbered(tmp_path: Path) -> None:
    found = read_golden(written(tmp_path, ROWS.drop(columns="request_id"), "csv"))
    assert found["request_id"].tolist() == ["golden-1", "golden-2", "golden-3"]


def test_the_digest_goes_by_what_is_said_and_not_by_the_order(tmp_path: Path) -> None:
    one = golden_digest(read_golden(written(tmp_path, ROWS, "csv")))
    assert golden_digest(read_golden(written(tmp_path, ROWS[::-1], "csv"))) == one
    changed = ROWS.assign(reference=["technical", "account", "billing!"])
    assert golden_digest(read_golden(written(tmp_path, changed, "csv"))) != one


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("reference", " ", r"1 rows cannot be used \(row 2: no reference\)"),
        ("prompt", None, r"1 rows cannot be used \(row 2: empty prompt\)"),
        ("prompt", "The printer is off", r"row 2: a prompt that stands before, and would count twice"),
        ("request_id", "a", r"row 2: duplicate id in the source"),
    ],
)
def test_a_row_that_cannot_be_used_has_the_file_refused_with_its_place(
    tmp_path: Path, column: str, value: str | None, told: str
) -> None:
    rows = ROWS.copy()
    rows.loc[1, column] = value
    place = written(tmp_path, rows, "parquet")
    with pytest.raises(InputError, match=told) as refused:
        read_golden(place)
    assert "judging.golden" in str(refused.value)
    assert "printer" not in str(refused.value), "prompts are in no error"


def test_lines_that_are_no_rows_are_named(tmp_path: Path) -> None:
    path = tmp_path / "golden.jsonl"
    path.write_text('{"prompt": "x", "reference": "y"}\nno json\n')
    with pytest.raises(InputError, match=r"row 2: malformed line"):
        read_golden(str(path))


def test_a_file_that_is_none_or_empty_or_lacks_a_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there"):
        read_golden(str(tmp_path / "none.csv"))
    with pytest.raises(InputError, match="has no column reference: it has request_id, prompt"):
        read_golden(written(tmp_path, ROWS[["request_id", "prompt"]], "csv"))
    with pytest.raises(InputError, match="holds no rows"):
        read_golden(written(tmp_path, ROWS.head(0), "csv"))
