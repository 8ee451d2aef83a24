"""The HTML page: our table first, Evidently's pictures of the same verdicts, nothing fetched from elsewhere."""

import html
import re
import socket
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monitoring.drift import compare
from monitoring.drift_report import DriftReport
from monitoring.errors import Failure
from monitoring.profile import ReferenceProfile
from monitoring.report import shown_names, write_html
from monitoring.settings import DriftSettings

ATTACK = "</script><script>alert(1)</script>"


def frame(rows: int, shift: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(rows)
    return pd.DataFrame(
        {
            "prompt_chars": rng.normal(100, 20, rows) + shift,
            "constant": 1.0,
            "latency_ms": np.nan,
            "mean_logprob": np.where(rng.random(rows) < 0.5, np.inf, rng.normal(size=rows)),
            "response": rng.choice(["billing", "delivery", ATTACK], rows),
            "meta_<b>": rng.choice(["a", "b"], rows),
        }
    )


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every attempt to connect, each of which fails."""
    attempts: list[object] = []

    def refuse(self: socket.socket, address: object) -> None:
        attempts.append(address)
        raise OSError("the network is off")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


def page_of(path: Path, reference: pd.DataFrame, current: pd.DataFrame) -> tuple[str, DriftReport]:
    settings = DriftSettings()
    profile = ReferenceProfile.build(
        reference, window="2012..2014", model_version="3", max_categories=50, sample_rows=500, seed=0
    )
    profile.save(path / "profile")
    report = compare(profile, current, "2016-01-01..2017-01-01", settings)
    sample = pd.read_parquet(path / "profile" / "sample.parquet")
    write_html(sample, current, report, path / "drift.html")
    return (path / "drift.html").read_text(encoding="utf-8"), report


class Loaded(HTMLParser):
    """What a browser would load for the page, the text of its body, and the number of its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.sources += [value or "" for name, value in attrs if name == "src" or (tag == "link" and name == "href")]


def test_the_page_opens_offline_and_begins_with_our_table(tmp_path: Path, offline: list[object]) -> None:
    page, report = page_of(tmp_path, frame(800), frame(600, shift=20))
    loaded = Loaded()
    loaded.feed(page)
    assert loaded.sources == []
    assert offline == []
    assert re.findall(r"url\((?!data:)|@import", page.partition("<body>")[0]) == []
    body = page.partition("<body>")[2]
    assert body.startswith('<section id="redistill">')
    section = body.partition("</section>")[0]
    assert "2016-01-01..2017-01-01: critical, drift in prompt_chars" in section
    for column in report.columns:
        assert column.why.replace(">", "&gt;").replace("<", "&lt;") in section
    for finding in report.findings:
        assert html.escape(finding) in section


def test_evidently_shows_our_numbers_and_our_verdict(tmp_path: Path) -> None:
    page, report = page_of(tmp_path, frame(800), frame(600, shift=20))
    drawn = {
        name: (verdict, float(score))
        for name, verdict, score in re.findall(
            r'"Drift in column \'([^"]+)\'", "label": "Data drift (detected|not detected)\. '
            r'Drift detection method: redistill, see the table\. Drift score: ([\d.e-]+)"',
            page,
        )
    }
    compared = [column for column in report.columns if column.psi is not None]
    assert {name.replace("\\u2039", "<") for name in drawn} == {column.name for column in compared}
    assert "latency_ms" not in drawn
    for column in compared:
        verdict, score = drawn[column.name.replace("<", "\\u2039")]
        assert verdict == ("detected" if column.drifted else "not detected")
        assert score == pytest.approx(column.psi, abs=6e-4)


def test_a_category_cannot_add_a_script(tmp_path: Path) -> None:
    page, _ = page_of(tmp_path, frame(800), frame(600))
    assert "alert(1)" in page
    assert ATTACK not in page
    assert "<b>" not in page.partition("<body>")[2].partition("</section>")[0]


def test_columns_whose_names_are_shown_alike_are_told_apart(tmp_path: Path) -> None:
    """A < is shown as \u2039, and so would meet a column that is called so."""

    def alike(rows: int, shift: float) -> pd.DataFrame:
        more = frame(rows)["prompt_chars"]
        return frame(rows).assign(**{"meta_<": more + shift, "meta_\u2039": more, "meta_\u2039 (2)": more + shift / 2})

    page, report = page_of(tmp_path, alike(800, 0), alike(600, 40))
    drawn = dict(re.findall(r'"Drift in column \'([^"]+)\'".{,120}?Drift score: ([\d.e-]+)"', page))
    psi = {column.name: column.psi for column in report.columns}
    for name, shown in (
        ("meta_<", r"meta_\u2039 (3)"),
        ("meta_\u2039", r"meta_\u2039"),
        ("meta_\u2039 (2)", r"meta_\u2039 (2)"),
    ):
        assert float(drawn[shown]) == pytest.approx(psi[name], abs=6e-4), name


def test_the_names_shown_do_not_depend_on_the_order_of_the_columns() -> None:
    names = ["meta_<", "x", "meta_\u2039", "<<", "\u2039<", "<\u2039"]
    shown = shown_names(names)
    assert shown == shown_names(names[::-1])
    assert len({*shown.values()}) == len(names)
    assert not any("<" in name for name in shown.values())
    assert (shown["x"], shown["meta_\u2039"]) == ("x", "meta_\u2039")


def test_a_long_value_does_not_fill_the_page(tmp_path: Path) -> None:
    then, now = frame(800), frame(600)
    for at, part in enumerate((then, now)):
        part["response"] = np.where(np.arange(len(part)) % (4 - 2 * at) == 0, "y" * 20_000, "billing")
        part["meta_new"] = np.where((np.arange(len(part)) % 2 == 0) & (at == 1), "z" * 20_000, "mail")
    page, report = page_of(tmp_path, then, now)
    assert {"response", "meta_new"} <= {*report.drifted_columns}
    assert f"{'y' * 59}\u2026" in page
    assert "z" * 40 in page
    assert not re.search("y{60}|z{60}", page)


@pytest.mark.parametrize("rows", [0, 5])
def test_a_window_with_nothing_to_draw_still_has_its_table(tmp_path: Path, rows: int) -> None:
    page, report = page_of(tmp_path, frame(800), frame(600).iloc[:rows])
    assert not report.drifted
    assert "<h2>Findings</h2>" in page
    assert "drawDashboard" not in page


def test_large_frames_are_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(
        "monitoring.report._evidently_page",
        lambda columns, before, now, names: drawn.extend([len(before), len(now)]) or "<head></head><body></body>",
    )
    page_of(tmp_path, frame(800), frame(30_000))
    assert drawn == [500, 2000]


def test_evidently_is_not_imported_until_a_page_is_drawn() -> None:
    code = (
        "import sys, monitoring.report, monitoring.policy; print({'evidently', 'torch', 'prefect'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_page_that_cannot_be_written_is_a_clear_failure(tmp_path: Path) -> None:
    (tmp_path / "drift.html").write_text("a file")
    report = DriftReport(
        window="w",
        rows=0,
        reference_window="r",
        reference_rows=1,
        model_version="1",
        columns=[],
        findings=[],
        drifted=False,
        drifted_columns=[],
        max_psi=None,
    )
    with pytest.raises(Failure, match=r"cannot write .*drift.html/page.html: "):
        write_html(pd.DataFrame(), pd.DataFrame(), report, tmp_path / "drift.html" / "page.html")
