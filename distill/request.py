"""What a training run is asked, and how its processes answer: lines of standard output."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.settings import LOCATION, TrainingSettings

PROGRESS = "redistill.step "  # begins a line that holds a step's record as JSON
ERROR = "redistill.error "  # begins the line in which an agent says why its attempt failed (Failed)
AGENT = "REDISTILL_AGENT"  # process id of the agent that started a worker
LOGS = "REDISTILL_LOGS"  # folder of the attempt's logs; set for workers that an agent started


@dataclass(frozen=True)
class TrainRequest:
    """All that a training run is made from."""

    start: str  # checkpoint whose weights, tokenizer and chat template the student begins with
    mixture: str
    signals: str
    output: str  # folder for checkpoints/, metrics.jsonl and student/
    epochs: float
    learning_rate: float
    settings: TrainingSettings
    teacher: str = ""  # checkpoint; needed for a live one, and for signals that are final states
    teacher_sha256: str = ""  # of the checkpoint that gave the signals; a checkpoint with another is refused

    def save(self, path: Path) -> None:
        """Write the request as JSON."""
        path.write_text(json.dumps({**asdict(self), "settings": self.settings.model_dump()}, indent=1))

    def digest(self) -> str:
        """Return the SHA-256 of what is asked, without where it lies or how fast it is made."""
        places = {"start", "mixture", "signals", "output", "teacher"}
        asked: dict[str, Any] = {name: value for name, value in asdict(self).items() if name not in places}
        asked["settings"] = {
            name: value
            for name, value in self.settings.model_dump(mode="json").items()
            if type(self.settings).model_fields[name].json_schema_extra != LOCATION
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    @classmethod
    def load(cls, path: Path) -> "TrainRequest":
        """Read a request; InputError when it is none."""
        try:
            fields = json.loads(path.read_text("utf-8"))
            return cls(**{**fields, "settings": TrainingSettings.model_validate(fields["settings"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"training request {str(path)!r} cannot be read ({error}): give a request.json") from error
