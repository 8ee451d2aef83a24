"""What a training run is asked, and how its processes answer: lines of standard output."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from distill.errors import InputError
from distill.settings import Divergence, TrainingSettings, identifies

PROGRESS = "redistill.step "  # begins a line that holds a step's record as JSON
ERROR = "redistill.error "  # begins the line in which an agent says why its attempt failed (Failed)
AGENT = "REDISTILL_AGENT"  # process id of the agent that started a worker
LOGS = "REDISTILL_LOGS"  # folder of the attempt's logs; set for workers that an agent started


@dataclass(frozen=True)
class Part:
    """The steps of a longer training that a request is for; each part has rows of its own.

    Weights, moments, the learning rate's course and what validation said go on from the part before.
    """

    first: Annotated[int, Field(ge=0)]  # steps that are done before it
    last: Annotated[int, Field(ge=1)]  # its last step, counted from the beginning of all
    steps: Annotated[int, Field(ge=1)]  # of all parts
    states: str  # folder of checkpoints/ and metrics.jsonl, which all parts share
    own_divergence: Divergence  # on the student's own answers


@dataclass(frozen=True)
class TrainRequest:
    """All that a training run is made from."""

    start: str  # checkpoint whose weights, tokenizer and chat template the student begins with
    mixture: str
    signals: str
    output: str  # folder for checkpoints/, metrics.jsonl and student/
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    settings: TrainingSettings
    teacher: str = ""  # checkpoint; needed for a live one, and for signals that are final states
    teacher_sha256: str = ""  # of the checkpoint that gave the signals; a checkpoint with another is refused
    part: Part | None = None  # None: the request is for the whole training

    @property
    def states(self) -> Path:
        """Folder of checkpoints/ and metrics.jsonl."""
        return Path(self.part.states if self.part else self.output)

    def save(self, path: Path) -> None:
        """Write the request as JSON."""
        path.write_text(json.dumps({**asdict(self), "settings": self.settings.model_dump()}, indent=1))

    def digest(self) -> str:
        """Return the SHA-256 of what is asked, without where it lies or how fast it is made."""
        places = {"start", "mixture", "signals", "output", "teacher"}
        asked: dict[str, Any] = {name: value for name, value in asdict(self).items() if name not in places}
        part = asked.pop("part")  # a request for the whole has the identity that it had before there were parts
        if part:
            asked["part"] = {name: value for name, value in part.items() if name != "states"}
        asked["settings"] = {
            name: value
            for name, value in self.settings.model_dump(mode="json").items()
            if identifies(type(self.settings).model_fields[name], value, self.settings.mode)
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    @classmethod
    def load(cls, path: Path) -> "TrainRequest":
        """Read a request; InputError when it is none."""
        try:
            fields = json.loads(path.read_text("utf-8"))
            unknown = sorted(fields.keys() - cls.__dataclass_fields__.keys())
            found = TypeAdapter(cls).validate_python(fields)
        except ValidationError as error:
            reason = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise InputError(f"training request {str(path)!r} is of another version, or damaged ({reason})") from error
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"training request {str(path)!r} cannot be read ({error}): give a request.json") from error
        if unknown:
            raise InputError(
                f"training request {str(path)!r} is of another version: it has {', '.join(unknown)}, unknown here"
            )
        return found


def step_line(record: dict[str, Any]) -> str:
    """Return a step's record as a line for people."""
    validated = f", validation loss {record['validation_loss']:.4f}" if "validation_loss" in record else ""
    return f"step {record['step']} of {record['steps']}: loss {record['loss']:.4f}{validated}"
