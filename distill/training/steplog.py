"""metrics.jsonl: one record a training step, which an agent is told as JSON, and a person as a line."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import psutil

from distill.request import LOGS, PROGRESS, step_line

PARTS = "divergence", "cross_entropy", "prompt_cross_entropy", "hidden", "attention", "uld"  # of a step's loss


class StepLog:
    """Appends records with the load of the machine; those after the `finished` steps that are kept are dropped.

    Without a path it only tells: so does each machine but the first.
    """

    def __init__(self, path: Path | None, finished: int) -> None:
        self._process = psutil.Process()
        psutil.cpu_percent()
        self._file = None if path is None else self._opened(path, finished)

    @staticmethod
    def _opened(path: Path, finished: int) -> TextIO:
        kept = path.read_text().splitlines(keepends=True)[:finished] if path.is_file() else []
        partial = path.with_name(path.name + ".partial")  # a kill here must not lose what is kept
        partial.write_text("".join(kept))
        os.replace(partial, path)
        return path.open("a")

    def write(self, record: dict[str, Any]) -> None:
        """Write one step's record."""
        record = {
            **record,
            "time": time.time(),
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": psutil.virtual_memory().used / 2**20,
            "system/process_memory_megabytes": self._process.memory_info().rss / 2**20,
        }
        line = json.dumps(record)
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()
        # In one write: an agent copies what there is of a line, and print() writes its end by itself.
        sys.stdout.write((PROGRESS + line if LOGS in os.environ else step_line(record)) + "\n")
        sys.stdout.flush()
