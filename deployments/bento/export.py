"""A container's build context: the Bento, a Dockerfile and what it leaves out; no container engine is needed."""

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from deployments.bento.build import Bento
from deployments.errors import Failure, InputError

# What the image is built of lies beside the Dockerfile; nothing else there is any of its business.
IGNORED = "*\n!README.md\n!apis\n!bento.yaml\n!env\n!src\n"


def export(bento: Path, out: Path) -> Path:
    """Write the context of a Bento to the folder `out`, which must not be there yet, and return its Dockerfile.

    The image runs as a user of its own that is not root, on pinned packages. Raises InputError when `bento` is no
    Bento or `out` is taken, and Failure when its Dockerfile would run as root. The folder appears whole or not at all.
    """
    if not (bento / "bento.yaml").is_file():
        raise InputError(f"{bento} is no Bento, it has no bento.yaml: build one first")
    if out.exists():
        raise InputError(f"{out} is there already: remove it, or export to another folder")
    dockerfile = (bento / "env" / "docker" / "Dockerfile").read_text("utf-8")
    users = [line.split()[1] for line in dockerfile.splitlines() if line.startswith("USER ")]
    if not users or users[-1] in ("root", "0"):
        raise Failure(f"the Dockerfile of {bento} runs as root: this release of BentoML cannot be used for it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".export-", dir=out.parent) as folder:
        context = Path(folder) / "context"
        shutil.copytree(bento, context)
        (context / "Dockerfile").write_text(dockerfile, "utf-8")
        (context / ".dockerignore").write_text(IGNORED, "utf-8")
        os.replace(context, out)
    return out / "Dockerfile"


def as_bento(source: Path) -> Bento | None:
    """Return what lies in a folder as a Bento, or None when it is a checkpoint."""
    if not source.is_dir():
        raise InputError(f"{source} is no folder: give a checkpoint or a Bento")
    if not (source / "bento.yaml").is_file():
        return None
    return Bento(f"{source.parent.name}:{source.name}", source)
