"""python -m benchmarks.loop [--demo] [--arxiv FILE] [--workspace DIR]

Times the loop as a user runs it: the embedded demo, first and second run, and the arXiv retrain of 2016. Prints a
Markdown section for RESULTS.md: wall seconds a stage, orchestration overhead, peak memory of any process, quality.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import machine
from monitoring.probe import told

PACKAGES = ("prefect", "torch", "transformers", "evidently", "mlflow", "bentoml", "pandas")
OWN_WORK = ("signals", "train", "judge", "bento")  # wholly; of the other stages the time in teacher and scoring
NOTHING = {"gain": None, "tokens": 0, "seconds": None}


@dataclass(frozen=True)
class Timed:
    """One command: its wall seconds, the largest resident memory of any of its processes, and its last JSON line."""

    what: str
    seconds: float
    peak_mb: float
    ended: dict[str, Any]

    @property
    def overhead(self) -> float:
        """Seconds that were neither teacher, training, scoring nor Bento."""
        whole: dict[str, float] = self.ended["seconds"]
        models: dict[str, float] = self.ended["model_seconds"]
        return self.seconds - sum(whole[stage] if stage in OWN_WORK else models[stage] for stage in whole)


def timed(what: str, command: list[str], folder: Path, environment: dict[str, str]) -> Timed:
    """Run a command whose last line is a retrain's JSON."""
    print(f"{what} ...", file=sys.stderr)
    began = time.perf_counter()
    with (folder / "benchmark.err").open("ab") as errors:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        peak = _Peak(process.pid)
        output, _ = process.communicate()
    seconds = time.perf_counter() - began
    (folder / f"{what}.txt").write_text(output)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with {process.returncode}: see {folder / 'benchmark.err'}")
    return Timed(what, seconds, peak.stop(), json.loads(output.splitlines()[-1]))


class _Peak:
    """Looks at the resident memory of a process and its descendants twice a second."""

    def __init__(self, pid: int) -> None:
        self._root, self._most, self._done = psutil.Process(pid), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            try:
                family = [self._root, *self._root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in family:
                try:
                    self._most = max(self._most, process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue  # it ended between the two looks

    def stop(self) -> float:
        """Return the peak in MB."""
        self._done.set()
        self._thread.join()
        return self._most / 2**20


def demo(folder: Path, environment: dict[str, str]) -> list[Timed]:
    """Time the embedded demo on an empty folder with an empty Prefect home, and once more."""
    command = [sys.executable, "-m", "flows.retrain", "--json"]
    return [
        timed("demo, first run", command, folder, environment),
        timed("demo, second run", command, folder, environment),
    ]


def arxiv(folder: Path, environment: dict[str, str], titles: Path) -> list[Timed]:
    """Time champion and challenger on the arXiv titles; the teacher is trained before and not counted."""
    config = folder / "arxiv" / "redistill.toml"
    subprocess.run(
        [sys.executable, "-m", "demo.arxiv", str(titles.absolute()), "--workspace", str(config.parent)],
        cwd=folder,
        env=environment,
        check=True,
        stdout=sys.stderr,
    )
    retrain = [sys.executable, "-m", "flows.retrain", "--config", str(config), "--json"]
    return [
        timed("arXiv, first champion of 2008-13", retrain, folder, environment),
        timed("arXiv, retrain on 2016", [*retrain, "--window", "2016-01-01..2017-01-01"], folder, environment),
        timed(
            "arXiv, retrain on July 2015 to June 2016, half of it known",
            [*retrain, "--window", "2015-07-01..2016-07-01", "--force"],
            folder,
            environment,
        ),
    ]


def section(rows: list[Timed]) -> str:
    """Return the Markdown of some timed commands."""
    lines = [
        f"## The loop, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"`python -m benchmarks.loop {' '.join(sys.argv[1:])}`, no GPU, {machine(*PACKAGES)}",
        "",
        "| command | seconds | overhead | peak MB | outcome | tokens bought / reused | stages |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        signals = row.ended["signals"]
        stages = ", ".join(f"{name} {seconds:.0f}" for name, seconds in row.ended["seconds"].items())
        lines.append(
            f"| {row.what} | {row.seconds:.0f} | {row.overhead:.1f} | {row.peak_mb:.0f} | {row.ended['outcome']} | "
            f"{signals['bought_tokens']} / {signals['reused_tokens']} | {stages} |"
        )
    lines += ["", "What the probe expected, and what came true:", ""]
    for row in rows:
        if probed := row.ended["probe"]:
            lines.append(f"- {row.what}: {told(probed['expected'])}; {told(probed['came_true'] or NOTHING)}")
    lines += ["", "Exact match on held-out rows:", ""]
    for row in rows:
        for name, means in row.ended["verdict"]["exact_match"].items():
            lines.append(f"- {row.what}, {name}: " + ", ".join(f"{key} {value:g}" for key, value in means.items()))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__, allow_abbrev=False)
    parser.add_argument("--demo", action="store_true", help="time the embedded demo")
    parser.add_argument("--arxiv", type=Path, metavar="FILE", help="time the arXiv loop on this file of titles")
    parser.add_argument("--workspace", type=Path, metavar="DIR", help="where (default: a new temporary folder)")
    options = parser.parse_args()
    folder = options.workspace or Path(tempfile.mkdtemp(prefix="redistill-benchmark-"))
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PREFECT_HOME": str(folder / "prefect")}
    rows = demo(folder, environment) if options.demo else []
    rows += arxiv(folder, environment, options.arxiv) if options.arxiv else []
    print(section(rows))


if __name__ == "__main__":
    main()
