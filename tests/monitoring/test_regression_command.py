"""python -m monitoring.regression SCORES_A SCORES_B, and what it makes scores of."""

import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from monitoring import regression_command, score_files
from monitoring.errors import InputError
from monitoring.judging_settings import JudgingSettings
from monitoring.row_metrics import exact_match, own_bound, own_metric, refusal_rate, token_f1, words

Saved = Callable[..., tuple[str, str]]


def answers(rows: int = 1000, right: float = 0.7, seed: int = 0) -> pd.DataFrame:
    """Answers of a model; request_ids with zeros in front and answers that look like missing ones."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {"request_id": [f"{at:06}" for at in range(rows)], "target": [f"label {at % 7}" for at in range(rows)]}
    )
    frame["response"] = np.where(rng.random(rows) < right, frame["target"], "NA")
    return frame


def changed(frame: pd.DataFrame, share: float, to: str, where: Any = slice(None)) -> pd.DataFrame:
    """The same with a share of the answers replaced, every so many rows."""
    frame = frame.copy()
    rows = frame.index[where][: int(share * len(frame.index[where]))]
    frame.loc[rows, "response"] = frame.loc[rows, "target"] if to == "target" else to
    return frame


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    def save(champion: pd.DataFrame, challenger: pd.DataFrame) -> tuple[str, str]:
        champion.to_csv(tmp_path / "a.csv", index=False)
        challenger.to_csv(tmp_path / "b.csv", index=False)
        return str(tmp_path / "a.csv"), str(tmp_path / "b.csv")

    return save


# -- the command ------------------------------------------------------------------------------------------------------


def test_exit_codes_are_0_pass_1_fail_2_wrong_use_3_inconclusive(
    saved: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = answers()
    assert regression_command.main([*saved(frame, frame)]) == 0
    assert capsys.readouterr().out.startswith("PASS  nothing is lost beyond its margin on all rows")
    assert regression_command.main([*saved(frame, changed(frame, 0.1, "x"))]) == 1
    assert capsys.readouterr().out.startswith("FAIL  all rows, exact_match: challenger - champion = -0.0")
    assert regression_command.main(["--kind", "fresh", *saved(frame, frame)]) == 3
    assert capsys.readouterr().out.startswith("INCONCLUSIVE  all rows, exact_match: ")
    assert regression_command.main([saved(frame, frame)[0], "nowhere.csv"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: scores 'nowhere.csv' cannot be read")
    assert told.count("\n") == 1


def test_a_table_has_every_slice_and_segment_and_names_what_is_harmed_and_left_out(
    saved: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = answers(3000)
    frame["slice"] = ["fresh 2016"] * 1000 + ["2012"] * 1000 + ["golden [a]"] * 1000
    frame["meta_lang"] = ["de", "en", "en", "en", "fr"] * 500 + ["en"] * 500
    frame.loc[:30, "meta_lang"] = ""
    frame["meta_user"] = ["user"] * 300 + [f"user {at}" for at in range(2700)]
    worse = changed(changed(frame, 0.3, "target", slice(0, 1000)), 0.2, "I'm sorry, I can not", slice(1000, 2000))
    assert regression_command.main([*saved(frame, worse.sample(frac=1, random_state=0))]) == 1
    printed = capsys.readouterr().out
    lines = {tuple(cell.strip() for cell in line.split("│"))[:2]: line for line in printed.splitlines() if "│" in line}
    assert "pass" in lines["fresh 2016", "exact_match"]
    assert "fail, harmed" in lines["2012", "exact_match"]
    assert "reported, harmed" in lines["2012", "refusal_rate"]
    assert "pass" in lines["golden [a]", "exact_match"]
    assert ("meta_lang = en", "token_f1") in lines
    assert "harmed: 2012" in printed
    assert "left out: meta_lang = (missing): 31 rows, fewer than judging.segment_rows = 300" in printed
    assert ("meta_user = user", "exact_match") in lines
    told = "meta_user: 2700 of 2701 values have fewer than judging.segment_rows = 300 rows each, 2,700 rows in all"
    assert f"left out: {told}" in printed


def test_json_is_the_whole_verdict(saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    frame = answers()
    assert regression_command.main(["--json", *saved(frame, frame)]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert (verdict["outcome"], verdict["checks"][0]["slice"], verdict["checks"][0]["rows"]) == (
        "pass",
        "all rows",
        1000,
    )


def test_gates_come_from_the_settings_file_and_options_go_before_it(saved: Saved, tmp_path: Path) -> None:
    frame = answers()
    worse = changed(frame, 0.1, "x")
    config = tmp_path / "redistill.toml"
    config.write_text('[judging]\ngates = ["exact_match=0.3"]\n')
    assert regression_command.main(["--config", str(config), *saved(frame, worse)]) == 0
    assert regression_command.main(["--config", str(config), "--gates", "exact_match", *saved(frame, worse)]) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--gates", "exact_mach"], "gates: 'exact_mach' is no metric; the nearest is exact_match"),
        (["--alpha", "0.9"], "alpha: Input should be less than 0.5"),
        (["--config", "nowhere.toml"], "--config 'nowhere.toml' cannot be used"),
        (["--gates", "negative_log_likelihood"], "has no scores of negative_log_likelihood"),
    ],
)
def test_wrong_options_are_said_in_one_line(
    saved: Saved, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = answers()
    assert regression_command.main([*options, *saved(frame, frame)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("features = 3", "features is of type int, no section: write [features]"),
        ("judging = 'exact_match'", "judging is of type str, no section: write [judging]"),
        ("[[judging]]\nalpha = 0.05", "judging is of type list, no section: write [judging]"),
    ],
)
def test_a_settings_file_with_a_value_in_a_sections_place_is_refused_by_name(
    saved: Saved, tmp_path: Path, written: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong.toml").write_text(written)
    assert regression_command.main(["--config", str(tmp_path / "wrong.toml"), *saved(answers(), answers())]) == 2
    error = capsys.readouterr().err
    assert "wrong.toml' cannot be used: " + told in error
    assert error.count("\n") == 1


def test_help_has_examples_and_waits_for_no_pandas() -> None:
    code = "import sys, monitoring.regression_command as c; c._parser().format_help(); print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    done = subprocess.run(
        [sys.executable, "-m", "monitoring.regression", "--help"], capture_output=True, text=True, check=True
    )
    assert "examples:" in done.stdout
    assert "exit codes: 0 pass, 1 fail, 2 wrong use or bad input, 3 inconclusive" in done.stdout


# -- files ------------------------------------------------------------------------------------------------------------


def test_formats_can_be_mixed_and_say_the_same(tmp_path: Path) -> None:
    frame = answers(200)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "a.parquet", index=False)
    read = [score_files.read(str(tmp_path / name)) for name in ("a.csv", "a.jsonl", "a.parquet")]
    for other in read[1:]:
        assert other.to_dict() == read[0].to_dict()
    assert read[0].index[0] == "000000"
    assert "NA" in set(read[0]["response"]), "an answer, nothing missing"


@pytest.mark.parametrize(("dtype", "value"), [("string", "a"), ("Int64", 1), ("category", "a"), (object, "a")])
def test_values_that_are_missing_in_a_parquet_file_are_a_segment_and_no_value_of_the_other_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: Any, value: object
) -> None:
    paths = [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]
    some = answers().assign(meta_x=pd.Series([None] * 400 + [value] * 600, dtype=dtype))
    some.to_parquet(paths[0])
    some.to_parquet(paths[1])
    assert regression_command.main(paths) == 0
    assert "meta_x = (missing)" in capsys.readouterr().out
    some.assign(meta_x=pd.Series([value] * 1000, dtype=dtype)).to_parquet(paths[1])
    for given in (paths, paths[::-1]):
        assert regression_command.main(given) == 2
        told = "column meta_x is not the same in both files for 400 request_ids (000000, 000001, 000002, ...)"
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(("column", "value"), [("meta_tags", ["a", "b"]), ("meta_tags", ["a"]), ("slice", {"a": 1})])
@pytest.mark.parametrize("other", ["the same", "without"])
def test_lists_that_are_said_of_a_request_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str, value: object, other: str
) -> None:
    paths = [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]
    frame = answers().assign(**{column: [None] + [value] * 999})
    frame.to_parquet(paths[0])
    (frame if other == "the same" else answers()).to_parquet(paths[1])
    assert regression_command.main(paths) == 2
    assert f"a.parquet': column {column} holds lists in 999 rows" in capsys.readouterr().err


def test_rows_are_joined_by_request_id_whatever_their_order(saved: Saved) -> None:
    frame = answers()
    first, second = (score_files.read(path) for path in saved(frame, frame.iloc[::-1]))
    champion, challenger = score_files.joined(first, second)
    assert champion.index.tolist() == challenger.index.tolist() == frame["request_id"].tolist()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda frame: frame.drop(columns="request_id"), "have no column request_id"),
        (lambda frame: pd.concat([frame, frame.iloc[:2]]), "2 request_ids (000000, 000001) twice"),
        (lambda frame: frame.iloc[5:], "the second file lacks 5 request_ids (000000, 000001, 000002, ...)"),
        (lambda frame: pd.concat([frame, answers(1001).iloc[-1:]]), "the first file lacks 1 request_ids (001000)"),
        (lambda frame: frame.assign(request_id=[""] * 3 + [*frame["request_id"][3:]]), "3 rows have no request_id"),
        (
            lambda frame: frame.assign(target="label 0"),
            "target is not the same in both files for 857 request_ids",
        ),
        (lambda frame: frame.drop(columns=["response"]), "the second file has nothing to make exact_match"),
        (lambda frame: frame.iloc[:0], "the second file lacks 1000 request_ids"),
    ],
)
def test_files_that_are_not_of_the_same_rows_are_refused(
    saved: Saved, spoil: Callable[[pd.DataFrame], pd.DataFrame], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = answers()
    assert regression_command.main([*saved(frame, spoil(frame))]) == 2
    assert told in capsys.readouterr().err


def test_scores_that_are_missing_or_no_numbers_are_counted_and_refused() -> None:
    frame = answers(10).set_index("request_id")
    for wrong in ("", "high", "nan", "inf", None):
        scored = frame.assign(token_f1=[wrong, wrong] + [0.5] * 8)
        with pytest.raises(InputError, match="column token_f1 of the first file: 2 of 10 rows hold no finite number"):
            score_files.paired_scores(scored, scored, JudgingSettings())


def test_every_metric_comes_from_its_columns_and_ready_scores_go_before_texts() -> None:
    frame = answers(10).set_index("request_id")
    frame = frame.assign(
        teacher_response=frame["target"],
        confidence=0.9,
        negative_log_likelihood="1.5",
        exact_match=[True] * 5 + [False] * 5,
    )
    found = score_files.paired_scores(frame, frame, JudgingSettings())
    assert set(found) == {
        *(
            "exact_match",
            "token_f1",
            "negative_log_likelihood",
            "teacher_agreement",
            "calibration_error",
            "refusal_rate",
        )
    }
    assert np.asarray(found["exact_match"].champion).tolist() == [1.0] * 5 + [0.0] * 5
    assert np.asarray(found["calibration_error"].champion).tolist() == [[0.9, 1.0]] * 5 + [[0.9, 0.0]] * 5
    assert np.asarray(found["negative_log_likelihood"].challenger).tolist() == [1.5] * 10


def test_rows_without_a_target_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = answers()
    half = frame.assign(target=[None] * 500 + [*frame["target"][500:]])
    for name in ("a", "b"):
        half.to_parquet(tmp_path / f"{name}.parquet", index=False)
    paths = [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]
    assert regression_command.main(["--json", *paths]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert {check["rows"] for check in verdict["checks"]} == {500}
    assert "500 of 1000 rows have no target, and no metric of them counts" in verdict["left_out"]
    frame.assign(target="").to_parquet(paths[0])
    frame.assign(target="").to_parquet(paths[1])
    assert regression_command.main(paths) == 2
    assert "no row has a target, and exact_match cannot be made without" in capsys.readouterr().err
    assert regression_command.main(["--gates", "refusal_rate", "--superior", "", *paths]) == 0
    assert "left out: target: no row has one" in capsys.readouterr().out


def test_an_answer_that_is_null_is_refused_and_an_empty_one_is_an_answer() -> None:
    frame = answers(10).set_index("request_id")
    silent = frame.assign(response=[None] * 2 + [*frame["response"][2:]])
    with pytest.raises(InputError, match="column response of the second file: 2 of 10 rows hold no text"):
        score_files.slices(frame, silent, JudgingSettings())
    found, _ = score_files.slices(frame, silent.fillna(""), JudgingSettings())
    assert np.asarray(found["all rows"].scores["exact_match"].challenger)[:2].tolist() == [0, 0]


def test_agreement_is_of_the_rows_of_which_the_teachers_answer_is_known() -> None:
    frame = answers(10).set_index("request_id")
    frame["teacher_response"] = [None] * 4 + [*frame["response"][4:]]
    frame["meta_lang"] = ["de"] * 4 + ["en"] * 6
    found, left_out = score_files.slices(frame, frame, JudgingSettings())
    assert np.asarray(found["all rows"].scores["teacher_agreement"].champion).tolist() == [1.0] * 6
    assert "teacher_agreement" not in found["meta_lang = de"].scores
    assert left_out == ["teacher_agreement: 4 of 10 rows have no teacher_response"]


def test_what_one_file_says_of_the_requests_holds_for_both() -> None:
    frame = answers(10).set_index("request_id")
    more = frame.assign(slice=["fresh"] * 5 + ["teacher errors"] * 5, meta_lang=["de", "en"] * 5)
    plain = frame.drop(columns="target")
    for pair in ((plain, more), (more, plain)):
        found, _ = score_files.slices(*score_files.joined(*pair), JudgingSettings())
        assert {name: part.kind for name, part in found.items()} == {
            "fresh": "fresh", "teacher errors": "teacher_errors", "meta_lang = de": "segment",
            "meta_lang = en": "segment",
        }  # fmt: skip
        assert "exact_match" in found["fresh"].scores


def test_what_counts_as_a_refusal_comes_from_the_settings_file(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = answers()
    config = tmp_path / "redistill.toml"
    config.write_text('[features]\nuse = ["prompt_chars"]\nrefusal = "^NA$"\n')
    assert regression_command.main(["--json", "--config", str(config), *saved(frame, frame)]) == 0
    checks = {check["metric"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["refusal_rate"]["champion"] == pytest.approx(1 - checks["exact_match"]["champion"])
    config.write_text('[features]\nrefusal = "("\n')
    assert regression_command.main(["--config", str(config), *saved(frame, frame)]) == 2
    assert "refusal: is no regular expression" in capsys.readouterr().err


# -- scores of texts --------------------------------------------------------------------------------------------------


def test_exact_match_forgives_white_space_around_and_nothing_else() -> None:
    assert exact_match([" a b\n", "A", "", "a  b"], ["a b", "a", "", "a b"]).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("response", "target", "expected"),
    [
        ("The cat sat.", "a CAT sat", 1.0),  # articles, case and punctuation do not count
        ("the cat sat down", "cat sat", 0.8),  # 2 of 3 and 2 of 2
        ("cat cat cat", "cat", 0.5),  # each word once
        ("", "", 1.0),
        ("the", "", 1.0),
        ("cat", "", 0.0),
        ("", "cat", 0.0),
        ("dog", "cat", 0.0),
        ("ﬁne \uff21\uff22\uff23", "fine abc", 1.0),  # compatible characters
        ("„Straße“ — nein!", "strasse nein", 1.0),
        ("café", "cafe\u0301", 1.0),
        ("我爱你", "我爱他", 2 / 3),  # no spaces: each character is a word
        ("3.5 kg", "35 kg", 1.0),  # as SQuAD's script has it
    ],
)
def test_token_f1_counts_words_in_common(response: str, target: str, expected: float) -> None:
    assert token_f1([response], [target]).tolist() == pytest.approx([expected])
    assert token_f1([target], [response]).tolist() == pytest.approx([expected])


def test_words_of_strange_texts_are_still_words() -> None:
    assert words("\u200d👍 ok\u0000") == ["\u200d👍", "ok\u0000"]
    assert words("!?…") == []


def test_a_refusal_is_what_the_pattern_finds() -> None:
    said = ["I'm sorry, I can't help with that", "As an AI, ...", "Restart it", "She said: I cannot", ""]
    assert refusal_rate(said).tolist() == [1, 1, 0, 0, 0]
    assert refusal_rate(said, r"Restart").tolist() == [0, 0, 1, 0, 0]


# -- metrics of one's own ---------------------------------------------------------------------------------------------


@pytest.fixture
def registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[[str], None]:
    """Install a package, by name one for each test, that registers the metric `own`."""
    name = "own_metric_" + "".join(c if c.isalnum() else "_" for c in request.node.name)

    def install(source: str) -> None:
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[redistill.metrics]\nown = {name}:own\n")
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)

    return install


BREVITY = "def own(prompts, responses, targets):\n    return [len(text) for text in responses]\nown.better = 'lower'\n"
BREVITY += "own.bound = 50\n"


def test_ones_own_metric_is_a_gate_in_its_own_direction(
    registered: Callable[[str], None], saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registered(BREVITY)
    config = tmp_path / "redistill.toml"
    config.write_text('[judging]\nown_metrics = ["own"]\ngates = ["own=0.5"]\n')
    frame = answers().assign(prompt="x", response="short")
    longer = frame.assign(response=["shorter"] * 500 + ["short"] * 500)
    assert regression_command.main(["--config", str(config), *saved(frame, longer)]) == 1
    assert "all rows, own: challenger - champion = +1.0000" in capsys.readouterr().out
    assert regression_command.main(["--config", str(config), *saved(longer, frame)]) == 0


def test_a_gate_on_ones_own_metric_needs_to_know_how_much_a_row_can_lose(
    registered: Callable[[str], None], saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registered(BREVITY.replace("own.bound = 50\n", ""))
    config = tmp_path / "redistill.toml"
    config.write_text('[judging]\nown_metrics = ["own"]\ngates = ["own=0.5"]\n')
    frame = answers().assign(prompt="x", response="short")
    assert regression_command.main(["--config", str(config), *saved(frame, frame)]) == 2
    assert "nobody says how much a row can lose in own" in capsys.readouterr().err
    config.write_text('[judging]\nown_metrics = ["own"]\n')
    assert regression_command.main(["--config", str(config), *saved(frame, frame)]) == 0, "reported, it needs none"


def test_a_gate_on_ones_own_metric_needs_a_margin(registered: Callable[[str], None]) -> None:
    registered(BREVITY)
    with pytest.raises(ValueError, match="own is one's own, write own=MARGIN in its unit"):
        JudgingSettings(own_metrics=("own",), gates=("own",))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def own(prompts, responses, targets):\n    return [1.0] * 3\n", "has None for `better`"),
        ("def own(*_):\n    return [1.0]\nown.better = 'lower'\n", r"returned \(1,\) for 3 rows"),
        ("def own(*_):\n    return [float('nan')] * 3\nown.better = 'lower'\n", "3 numbers that are not finite"),
        ("def own(*_):\n    raise KeyError('x')\n", "failed: KeyError"),
        ("def owl(*_):\n    pass\n", "failed: AttributeError"),
    ],
)
def test_a_metric_of_ones_own_that_is_broken_is_named(
    registered: Callable[[str], None], source: str, told: str
) -> None:
    registered(source)
    with pytest.raises(InputError, match=told) as error:
        own_metric("own", ["a"] * 3, ["b"] * 3, ["c"] * 3)
    assert "entry point own_metric_" in str(error.value)
    assert "leave it out of judging.own_metrics" in str(error.value)


def test_what_a_broken_metric_says_of_a_prompt_is_not_told(registered: Callable[[str], None]) -> None:
    registered("def own(prompts, *_):\n    raise ValueError(f'cannot read {prompts[0]}')\n")
    with pytest.raises(InputError, match="failed: ValueError; correct it") as error:
        own_metric("own", ["my secret"], ["b"], ["c"])
    assert "cannot read" not in "".join(traceback.format_exception(error.value))


def test_a_bound_that_is_no_number_above_0_is_refused(registered: Callable[[str], None]) -> None:
    registered(BREVITY.replace("50", "-1"))
    with pytest.raises(InputError, match="has -1 for `bound`: set it to a number above 0"):
        own_bound("own")
