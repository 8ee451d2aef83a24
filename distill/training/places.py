"""What a request names is there, seen before anything expensive is loaded or started."""

import tempfile
from pathlib import Path

from distill.checkpoint import resolve
from distill.errors import InputError
from distill.request import TrainRequest

_FOLDERS = "checkpoints", "student", "logs"
_FILES = "metrics.jsonl", "outcome.json", "suspect_rows.json", "mixture.safetensors", "request.json"


def check(request: TrainRequest) -> None:
    """Raise InputError, naming the field of the request, for what is missing, or an output that cannot be written."""
    resolve(request.start, "start")
    if request.teacher:
        resolve(request.teacher, "teacher")
    elif request.settings.live_teacher:
        raise InputError("training.live_teacher is true, but the request names no teacher: give its checkpoint")
    if not Path(request.mixture).is_file():
        raise InputError(f"mixture {request.mixture!r}: there is no such file; name the one that goes with the request")
    if "://" not in request.signals and not Path(request.signals).is_dir():
        raise InputError(f"signals {request.signals!r}: there is no such folder; name the store the teacher filled")
    writable(Path(request.output))


def writable(output: Path) -> None:
    """Make the folder of a training; InputError when it cannot be written, or has something else in a file's place."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise InputError(
            f"output {str(output)!r} cannot be written ({error.strerror or error}): name another folder"
        ) from error
    wrong = [(name, "no folder") for name in _FOLDERS if (output / name).exists() and not (output / name).is_dir()]
    wrong += [(name, "no file") for name in _FILES if (output / name).is_dir()]
    if wrong:
        name, found = wrong[0]
        raise InputError(f"output {str(output)!r} has a {name!r} that is {found}: move it away, or name another folder")
