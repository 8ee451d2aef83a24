"""What asking the teacher took -> a Prometheus textfile for node_exporter's collector, which scrapes it like a service.

A retrain is a process that ends, so the counters live in the file: each time that a teacher was asked is added to what
it says. Labels are student, backend and kinds of things; never prompts, keys or addresses.
"""

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from prefect.logging import get_run_logger

from distill.obtained import Obtained
from distill.teachers.spent import LATENCIES, Remote, Spent
from monitoring.errors import Failure
from monitoring.files import write_atomically
from tasks import costs

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from tasks.teaching import Teaching

PREFIX = "redistill_teacher_"
FAMILIES = {  # name: kind, meaning
    "rows": ("counter", "prompts whose signals were bought, or reused"),
    "tokens": ("counter", "tokens of prompts and answers that were bought, or reused"),
    "money": ("counter", "what was paid for the bought and saved by the reused, at the prices of the settings"),
    "asking_seconds": ("counter", "time in which the teacher was asked"),
    "failures": ("counter", "times that asking ended with an error"),
    "requests": ("counter", "requests sent, those sent again included"),
    "retries": ("counter", "requests that a server did not answer"),
    "rests": ("counter", "times that a server was left alone because it failed, or asked for it"),
    "waiting_seconds": ("counter", "time until a server was there to be asked, of all requests together"),
    "billed_tokens": ("counter", "tokens as an OpenAI-compatible endpoint counts them"),
    "request_seconds": ("histogram", "time of a request that was answered"),
    "last_asked_timestamp_seconds": ("gauge", "when the teacher was last asked"),
}
Paid: TypeAlias = tuple[int, int, int]  # rows, tokens of prompts, tokens of answers
_Labels: TypeAlias = tuple[tuple[str, str], ...]
_Sample: TypeAlias = tuple[str, str, _Labels, float]  # family, what follows its name, labels, value


@contextmanager
def counting(settings: "Teaching", teacher: object, paid: Callable[[], Paid], asked: Path) -> Iterator[list[Obtained]]:
    """Add what the block asks to the file that the settings name, if any, also where it ends with an error.

    The block puts what it obtained into the list. paid: of `purchases.paid`, which says more afterwards. What a
    process that was killed has bought is counted by the next one, which finds beside the file `asked` where it began.
    A file that cannot be written holds up no retrain: the reason is logged.
    """
    ended: list[Obtained] = []
    if settings.metrics is None:
        yield ended
        return
    open_ = asked.with_name(f"{asked.name}.counting.json")  # there while a block is not over
    before = json.loads(open_.read_text("utf-8")) if open_.is_file() else paid()
    write_atomically(open_, json.dumps(before).encode())
    began, earlier = time.monotonic(), _spent_by(teacher)
    try:
        yield ended
    finally:
        bought = [now - then for now, then in zip(paid(), before, strict=True)]
        obtained = ended[0] if ended else None
        seconds = obtained.effort.seconds if obtained else time.monotonic() - began
        last = _spent_by(teacher)
        broken_off = None if last is earlier else last  # who was not asked at all has what it spent before
        spent = obtained.effort.spent if obtained else broken_off
        try:
            add(settings.metrics, list(_samples(settings, bought, obtained, seconds, spent)))
        except Failure as error:
            get_run_logger().error("what the teacher was asked is not among the metrics: %s", error)
        open_.unlink(missing_ok=True)


def _spent_by(teacher: object) -> Spent | None:
    return teacher.spent if isinstance(teacher, Remote) else None


def add(file: Path, samples: list[_Sample]) -> None:
    """Add samples to those of a textfile, one process at a time; gauges are replaced.

    Raises Failure, with nothing changed, when the file cannot be read or written.
    """
    from prometheus_client import CollectorRegistry, generate_latest

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.with_name(f".{file.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            whole = _read(file)
            for family, ending, labels, value in samples:
                key = family, ending, tuple(sorted(labels))
                before = 0.0 if FAMILIES[family][0] == "gauge" else whole.get(key, 0.0)
                whole[key] = before + value
            registry = CollectorRegistry()
            registry.register(_Kept(whole))
            write_atomically(file, generate_latest(registry))
    except OSError as error:
        raise Failure(f"cannot write {file}: {error.strerror}; teacher.metrics_file names it") from error


class _Kept:
    """Samples as prometheus_client wants to collect them."""

    def __init__(self, samples: Mapping[tuple[str, str, _Labels], float]) -> None:
        self.samples = samples

    def collect(self) -> Iterator["Metric"]:
        from prometheus_client.core import Metric

        for name, (kind, meaning) in FAMILIES.items():
            metric = Metric(PREFIX + name, meaning, kind)
            for (family, ending, labels), value in self.samples.items():
                if family == name:
                    metric.add_sample(PREFIX + name + ending, dict(labels), value)
            yield metric


def _read(file: Path) -> dict[tuple[str, str, _Labels], float]:
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[tuple[str, str, _Labels], float] = {}
    if not file.is_file():
        return found
    try:
        for metric in text_string_to_metric_families(file.read_text("utf-8")):
            family = metric.name.removeprefix(PREFIX)
            if family in FAMILIES:
                for sample in metric.samples:
                    labels = tuple(sorted(sample.labels.items()))
                    found[family, sample.name.removeprefix(PREFIX + family), labels] = float(sample.value)
    except (ValueError, KeyError) as error:  # UnicodeDecodeError is a ValueError
        raise Failure(f"{file} is no Prometheus textfile ({error}): delete it, or name another one") from error
    return found


def _samples(
    settings: "Teaching", bought: list[int], obtained: Obtained | None, seconds: float, spent: Spent | None
) -> Iterator[_Sample]:
    """Yield what to add; bought: rows, tokens of prompts, tokens of answers."""
    who = (("student", settings.student.name), ("backend", settings.teacher.backend))
    yield "last_asked_timestamp_seconds", "", who, time.time()
    yield "asking_seconds", "_total", who, seconds
    yield "failures", "_total", who, float(obtained is None)
    reused = [0, 0, 0]
    if obtained:
        found = obtained.part(~obtained.bought)
        reused = [len(found.keys), int(found.prompt_tokens.sum()), int(found.answer_tokens.sum())]
    for origin, (rows, prompt, answer) in (("bought", bought), ("reused", reused)):
        labels = (*who, ("origin", origin))
        yield "rows", "_total", labels, rows
        for kind, tokens in (("prompt", prompt), ("answer", answer)):
            yield "tokens", "_total", (*labels, ("kind", kind)), tokens
        if costs.priced(settings.teacher):
            paid = costs.money(prompt, answer, settings.teacher)
            yield "money", "_total", (*labels, ("currency", settings.teacher.currency)), paid
    if spent is not None:
        yield from _spent(who, spent)


def _spent(who: _Labels, spent: Spent) -> Iterator[_Sample]:
    yield "requests", "_total", who, spent.requests
    yield "retries", "_total", who, spent.retries
    yield "rests", "_total", who, spent.rests
    yield "waiting_seconds", "_total", who, spent.waited_seconds
    for kind, tokens in (("prompt", spent.billed_prompt_tokens), ("answer", spent.billed_answer_tokens)):
        yield "billed_tokens", "_total", (*who, ("kind", kind)), tokens
    below = 0
    for end, count in zip([*map(str, LATENCIES), "+Inf"], spent.latencies, strict=True):
        below += count
        yield "request_seconds", "_bucket", (*who, ("le", end)), below
    yield "request_seconds", "_count", who, below
    yield "request_seconds", "_sum", who, spent.answered_seconds
