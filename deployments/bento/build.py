"""Has a checkpoint packed into a Bento, by a builder (deployments/bento/builder.py) in a process of its own."""

import json
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from deployments import process
from deployments.bento import onnx_graph
from deployments.bento.builder import MEASURED
from deployments.bento.quantised import Measured
from deployments.errors import Failure, InputError
from deployments.settings import PackagingSettings
from deployments.verification import verify_checkpoint

SERVED = (  # settings that the service goes by
    "format",
    "max_batch_size",
    "max_waiting",
    "max_latency_ms",
    "max_prompts",
    "max_prompt_chars",
    "max_body_bytes",
    "api_key_env",
)
_TAG = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")  # BentoML's rule, for a name and for a version


@dataclass(frozen=True)
class Bento:
    """A Bento in a store."""

    tag: str  # STUDENT:VERSION
    path: Path
    measured: Measured | None = None  # onnx-int8 only


def build(
    checkpoint: Path,
    *,
    student: str,
    model_version: str,
    retrain_id: str,
    max_prompt_tokens: int,
    max_new_tokens: int,
    labels: Mapping[str, str],
    settings: PackagingSettings,
    home: Path,
    log: Callable[[str], None],
    prompts: Sequence[str] = (),
    expected: Mapping[str, str] | None = None,
    card: str = "",
) -> Bento:
    """Return the Bento of a checkpoint, built unless the store `home` already holds it whole and with this content.

    Its version is MODEL_VERSION-RETRAIN_ID; one of that name with other content is built anew. `log` gets the
    builder's lines. On `prompts`, which stay outside, onnx-int8 is measured; `expected` are hashes that the checkpoint
    must have (deployments.verification); `card` is Markdown for its README. Raises InputError for a checkpoint that is
    not whole or cannot be packed so, or a name that BentoML cannot take, and Failure when the checkpoint is another one
    or the build fails.
    """
    checkpoint, home = checkpoint.resolve(), home.resolve()
    _check(checkpoint, settings, prompts)
    if expected is not None:
        verify_checkpoint(checkpoint, expected)
    name, bento_version = _tag_part(student, "student.name"), _tag_part(f"{model_version}-{retrain_id}", "version")
    model = {
        "student": student,
        "model_version": model_version,
        "max_prompt_tokens": max_prompt_tokens,
        "max_new_tokens": max_new_tokens,
        **settings.model_dump(include=set(SERVED)),
    }
    request = {
        "checkpoint": str(checkpoint),
        "home": str(home),
        "name": name,
        "version": bento_version,
        "model": model,
        "min_agreement": settings.min_agreement,
        "prompts": list(prompts) if settings.format == "onnx-int8" else [],
        "card": card,
        "labels": {**labels, "student": student, "model_version": model_version, "retrain_id": retrain_id},
    }
    bento = Bento(f"{name}:{bento_version}", home / "bentos" / name / bento_version)
    with TemporaryDirectory(prefix="bento-request-") as folder:
        path = Path(folder) / "request.json"
        path.write_text(json.dumps(request), "utf-8")
        _run(path, bento.tag, log)
        measured = path.with_name(MEASURED)
        if measured.is_file():
            bento = replace(bento, measured=Measured.from_json(measured.read_text("utf-8")))
    if not (bento.path / "bento.yaml").is_file():
        raise Failure(f"the build of Bento {bento.tag} ended well, but {bento.path} is not there: build it again")
    return bento


def _check(checkpoint: Path, settings: PackagingSettings, prompts: Sequence[str]) -> None:
    for name in ("config.json", "tokenizer.json"):
        if not (checkpoint / name).is_file():
            raise InputError(f"checkpoint {checkpoint} has no {name}, so no Bento can be made of it: export it again")
    index = checkpoint / "model.safetensors.index.json"
    weights = {"model.safetensors"}
    if index.is_file():
        try:
            weights = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"checkpoint {checkpoint}: {index.name} is damaged ({error}): export it again") from error
    if missing := sorted(file for file in weights if not (checkpoint / file).is_file()):
        raise InputError(
            f"checkpoint {checkpoint} lacks {len(missing)} of {len(weights)} weight files "
            f"({', '.join(missing[:3])}): export it again"
        )
    if settings.format == "onnx-int8":
        onnx_graph.check(_config(checkpoint), f"checkpoint {checkpoint}")
        if not prompts:
            raise InputError("packaging.format = 'onnx-int8' is measured on prompts: give some held-out ones")


def _config(checkpoint: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((checkpoint / "config.json").read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"checkpoint {checkpoint}: config.json is damaged ({error}): export it again") from error


def _tag_part(text: str, what: str) -> str:
    if not _TAG.fullmatch(text.lower()):
        raise InputError(
            f"{what} {text!r} cannot name a Bento: use at most 63 of a-z 0-9 . _ -, and a letter or digit at both ends"
        )
    return text.lower()


def _run(request: Path, tag: str, log: Callable[[str], None]) -> None:
    """Run the builder and hand on its lines; take it down when we are interrupted."""
    # A builder that tried to install something would fail instead of changing this environment.
    environment = {"BENTOML_DO_NOT_TRACK": "True", "PIP_NO_INDEX": "1"}
    command = [sys.executable, "-m", "deployments.bento.builder", str(request)]
    builder = process.start(command, environment=environment, output=subprocess.PIPE)
    last: deque[str] = deque(maxlen=20)
    try:
        assert builder.stdout is not None
        for line in builder.stdout:
            last.append(line.decode("utf-8", "replace").rstrip())
            log(last[-1])
        code = builder.wait()
    finally:
        process.stop(builder, set())
        if builder.stdout is not None:
            builder.stdout.close()
    if code:
        raise Failure(
            f"building Bento {tag} failed with exit code {code}; the builder's last lines:\n" + "\n".join(last)
        )
