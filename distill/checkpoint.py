"""A model on disk: a Hugging Face directory (or hub name) -> a local folder that is whole, and its SHA-256.

The state of a training run lies in distill.training.states; the finished student is written by distill.models.export.
"""

import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path

from distill.errors import InputError

_HUB_NAME = re.compile(r"^[\w-][\w.-]*(/[\w.-]+)?$")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt")

# tokenizer.json is large, and read with an error of its own (prompts.load_tokenizer).
_TABLES = ("config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors.index.json")


def resolve(checkpoint: str | Path, what: str) -> Path:
    """Return the local folder of a checkpoint, fetched from the hub if it is a hub name.

    `what` names the checkpoint in errors ("teacher.model"). Raises InputError when it is missing or not whole.
    """
    text = str(checkpoint)
    if not text:
        raise InputError(f"{what} is empty: give the folder or hub name of a causal language model")
    folder = Path(text).expanduser()
    if not folder.exists() and _HUB_NAME.match(text):
        folder = _from_hub(text, what)
    check(folder, what)
    return folder


def _from_hub(name: str, what: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_WEIGHTS)))
    except Exception as error:  # the hub client's errors share no base
        raise InputError(
            f"{what} {name!r} is no local folder and could not be fetched from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]}): give a folder, or a name the hub has"
        ) from error


def check(folder: str | Path, what: str = "checkpoint") -> None:
    """Raise InputError, naming the file, when a local checkpoint is missing or lacks a part."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{what} {str(folder)!r}: there is no such folder")
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise InputError(f"{what} {str(folder)!r} has no {name}: export the model and its tokenizer again")
    for name in _TABLES:
        if (folder / name).is_file():
            _check_json(folder / name, what)
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        if not (folder / "model.safetensors").is_file():
            raise InputError(f"{what} {str(folder)!r} has no model.safetensors: only safetensors weights are read")
        return
    shards = set(json.loads(index.read_text()).get("weight_map", {}).values())
    if not shards:
        raise InputError(f"{what} {str(folder)!r}: {index.name} names no weights: copy or export it again")
    if missing := sorted(shard for shard in shards if not (folder / shard).is_file()):
        raise InputError(
            f"{what} {str(folder)!r} lacks {len(missing)} of {len(shards)} shards "
            f"({', '.join(missing[:3])}): copy or export it again"
        )


def _check_json(path: Path, what: str) -> None:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{what} {str(path.parent)!r}: {path.name} is damaged ({reason}): copy or export it again"
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{what} {str(path.parent)!r}: {path.name} holds no table: copy or export it again")


def digest(folder: str | Path) -> str:
    """Return the SHA-256 (hex) of a checkpoint folder: names and contents of its files."""
    total = hashlib.sha256()
    for path in sorted(p for p in Path(folder).iterdir() if p.is_file() and not p.name.startswith(".")):
        status = path.stat()
        total.update(path.name.encode() + b"\0" + _file_digest(path, status.st_size, status.st_mtime_ns))
    return total.hexdigest()


@lru_cache(maxsize=4096)
def _file_digest(path: Path, size: int, mtime_ns: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
