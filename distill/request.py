"""What a training run is asked, and how its processes answer: lines of standard output."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from distill.settings import TrainingSettings

PROGRESS = "redistill.step "  # begins a line that holds a step's record as JSON
ERROR = "redistill.error "  # begins a line that says why a process failed


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

    def save(self, path: Path) -> None:
        """Write the request as JSON."""
        path.write_text(json.dumps({**asdict(self), "settings": self.settings.model_dump()}, indent=1))

    @classmethod
    def load(cls, path: Path) -> "TrainRequest":
        """Read a request."""
        fields = json.loads(path.read_text())
        return cls(**{**fields, "settings": TrainingSettings.model_validate(fields["settings"])})
