"""The arXiv adapter: a bad file is one clear line, and a second run is no second work."""

import gzip
import tomllib
import zlib
from pathlib import Path

import numpy as np
import pytest

from demo import arxiv
from distill.settings import StudentSettings, TrainingSettings
from distill.teacher_settings import TeacherSettings
from monitoring.settings import ReferenceSettings, TrafficSettings
from monitoring.traffic import read_window, span

HEADER = "arxiv_id,date,primary_cat,title\n"


def table(rows: int) -> str:
    rng = np.random.default_rng(0)
    lines = [
        f"{n:04d}.{n:05d},{2008 + n * 9 // rows}-0{1 + n % 9}-03,cs.{('CL', 'DB')[n % 2]},"
        f'"On {("parsing", "joins")[n % 2]} of kind {rng.integers(99)}, again"\n'
        for n in range(rows)
    ]
    return HEADER + "".join(lines)


@pytest.fixture
def titles(tmp_path: Path) -> Path:
    file = tmp_path / "titles.csv.gz"
    file.write_bytes(gzip.compress(table(300).encode()))
    return file


def test_only_held_out_rows_have_a_reference(titles: Path) -> None:
    rows = arxiv.read_titles(titles)
    log = arxiv.request_log(rows)
    held_out = np.array([zlib.crc32(name.encode()) % 100 >= 60 for name in log.request_id])
    assert (log.reference.notna() == held_out).all()
    assert 0 < held_out.sum() < len(log) == 300
    assert list(log.columns) == ["request_id", "timestamp", "prompt", "reference"]
    assert log.prompt[1].startswith("On joins of kind")


def test_a_second_run_is_no_second_work(titles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(arxiv.TEACHER, "steps", 3)
    calls: list[int] = []
    configs = [arxiv.prepare(titles, tmp_path / "w", lambda done, _: calls.append(done)) for _ in range(2)]
    assert configs[0] == configs[1] == tmp_path / "w" / "redistill.toml"
    assert calls == [3]
    log = str(tmp_path / "w" / "traffic")
    assert len(read_window(log, span(log))) == 300

    found = tomllib.loads(configs[0].read_text())
    assert found["workspace"] == str(tmp_path / "w")
    student, teacher = StudentSettings(**found["student"]), TeacherSettings(**found["teacher"])
    TrafficSettings(**found["traffic"]), ReferenceSettings(**found["reference"])
    training = TrainingSettings(**found["training"])
    assert (Path(student.base) / "config.json").is_file()
    assert (Path(teacher.model) / "tokenizer.json").is_file()
    learnt = sum(zlib.crc32(f"{n:04d}.{n:05d}".encode()) % 100 < 60 for n in range(200))  # 2008-13
    assert training.first_epochs * learnt == pytest.approx(600 * 64, rel=0.01)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"", "cannot be read"),
        (gzip.compress(table(500).encode())[:-200], "cannot be read"),
        (b"this is no gzip", "cannot be read"),
        (gzip.compress(b"arxiv_id,date,title\n1,2008-01-01,T\n"), "primary_cat is missing"),
        (gzip.compress(HEADER.encode()), "no row"),
        (gzip.compress((HEADER + "1,2008-01-01,cs.CL,T\n2,someday,cs.CL,U\n").encode()), "'someday' in line 3"),
        (gzip.compress(HEADER.encode() + b"1,2008-01-01,cs.CL,\xff\xfe\n"), "cannot be read"),
    ],
    ids=["absent", "empty", "cut short", "not gzip", "no category", "no row", "no date", "not UTF-8"],
)
def test_a_bad_file_is_one_clear_line_and_exit_code_2(
    content: bytes | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "titles.csv.gz"
    if content is not None:
        file.write_bytes(content)
    assert arxiv.main([str(file), "--workspace", str(tmp_path / "w")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert str(file) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "w").exists()
