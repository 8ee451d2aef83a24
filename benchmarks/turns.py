"""Contenders that take turns: each is a process of its own, that works whenever it is asked and says what it took.

What else the machine does then falls on all of them alike, and a ratio is the median over rounds of what two of them
took in the same round, in CPU seconds.
"""

import contextlib
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


class Absent(Exception):
    """Says why a contender does not run here."""


class Contender:
    """A process that works once whenever it is asked; raises Absent where it does not run.

    `command` is what follows `python -m`; the module calls `serve`.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name, self.rounds = name, list[dict[str, float]]()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.first = self._told()  # what its first work took and found: compiles, looks up, fills caches

    def turn(self) -> None:
        """Have it work once."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.rounds.append(self._told())

    def _told(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(_TOOK):
                found: dict[str, float] = json.loads(line.removeprefix(_TOOK))
                return found
        self.end()
        self._errors.seek(0)
        raise Absent((self._errors.read().strip().splitlines() or ["it said nothing"])[-1])

    def ratio(self, other: "Contender") -> float:
        """Return the median ratio of CPU seconds to another one's in the same round."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(own["cpu"] / theirs["cpu"] for own, theirs in pairs)

    def median(self, figure: str) -> float:
        """Return the median of a figure over the rounds."""
        return statistics.median(measured[figure] for measured in self.rounds)

    def total(self, figure: str) -> float:
        """Return the sum of a figure over the rounds."""
        return sum(measured[figure] for measured in self.rounds)

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def in_turns(
    commands: Mapping[str, Sequence[str]], rounds: int
) -> Iterator[tuple[dict[str, Contender], dict[str, str]]]:
    """Start contenders one after the other, give each its turn in every round, end them at last.

    Yields (those that ran, why the others do not run here), both by name.
    """
    found: dict[str, Contender] = {}
    absent: dict[str, str] = {}
    try:
        for name, command in commands.items():
            try:
                found[name] = Contender(name, command)
            except Absent as error:
                absent[name] = str(error)
        for _ in range(rounds):
            for contender in found.values():
                contender.turn()
        yield found, absent
    finally:
        for contender in found.values():
            contender.end()


_TOOK = "took "  # begins a line that holds what a turn took as JSON


def serve(work: Iterator[float]) -> None:
    """Work once, and once more for each line of the input; the other end of a Contender."""
    _tell(work)
    for _ in sys.stdin:
        _tell(work)


def _tell(work: Iterator[float]) -> None:
    print(_TOOK + json.dumps(measured(work)), flush=True)


def measured(work: Iterator[float]) -> dict[str, float]:
    """Return CPU seconds, extra peak memory [MB] and value of the next piece of work."""
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    began = time.process_time()
    value = next(work)
    cpu = time.process_time() - began
    return {"cpu": cpu, "extra_mb": (_status("VmHWM") - before) / 2**10, "value": value}


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)))
