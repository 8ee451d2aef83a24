"""Packs a student's checkpoint into a Bento, in a process of its own.

    python -m deployments.bento.builder REQUEST.json

A build sees one fresh folder that holds serving/, model.json and the checkpoint's own files, and nothing else: no
prompt, log or workspace file can get in. It appears in the store by one rename, so what is there is whole.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from deployments.bento.quantised import measure, write
from deployments.bento.serving.files import digests

SERVICE = Path(__file__).with_name("serving")  # all of our code that a Bento holds
CHECKPOINT_FILES = (  # what a Hugging Face directory may hold of a model; anything else stays outside
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
REQUIREMENTS = ("bentoml", "fastapi", "jinja2", "numpy", "prometheus-client", "pydantic", "tokenizers", "transformers")
ENGINES = {"torch": ("safetensors", "torch"), "onnx-int8": ("onnxruntime",)}
MEASURED = "measured.json"  # beside the request


def _build(request: Mapping[str, Any], measured: Path) -> None:
    """Put the requested Bento into the store, unless it is there already with the same content.

    What 8-bit weights cost and bring is written to `measured`.
    """
    home = Path(request["home"])
    target = home / "bentos" / request["name"] / request["version"]
    scratch_home = home / "tmp"
    scratch_home.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="build-", dir=scratch_home) as folder:
        context = Path(folder) / "context"
        _fill(context, Path(request["checkpoint"]), request["model"])
        if request["model"]["format"] == "onnx-int8":
            _measure(request, context / "checkpoint", measured)
        pins = _pins(REQUIREMENTS + ENGINES[request["model"]["format"]])
        rest = json.dumps({"labels": request["labels"], "pins": pins, "card": request["card"]}, sort_keys=True)
        content = _digest(context, rest)
        if target.exists():
            if _is_whole(target, content, rest):
                print(f"Bento {request['name']}:{request['version']} is there already")
                return
            print(f"Bento {request['name']}:{request['version']} has other content, and is replaced")
        labels = {**request["labels"], "content_sha256": content}
        built = _bentoml_build(request, context, Path(folder) / "home", labels, pins)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            os.replace(target, Path(folder) / "replaced")
        os.replace(built, target)
        (target.parent / "latest").write_text(request["version"], "utf-8")
        print(f"built Bento {request['name']}:{request['version']}")


def _pins(names: Sequence[str]) -> list[str]:
    """Return NAME==VERSION of what is installed of these packages and of all that they need."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, str] = {}
    left = [Requirement(name) for name in names]
    while left:
        wanted = left.pop()
        name = canonicalize_name(wanted.name)
        if name in found:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            if name in names:
                raise
            continue  # needed elsewhere, by another platform or an extra that nobody asked for
        found[name] = package.version.partition("+")[0]  # torch says 2.13.0+cpu
        needs = [Requirement(line) for line in package.requires or ()]
        extras = ("", *wanted.extras)
        left += [need for need in needs if not need.marker or any(need.marker.evaluate({"extra": e}) for e in extras)]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def _fill(context: Path, checkpoint: Path, model: Mapping[str, Any]) -> None:
    (context / "checkpoint").mkdir(parents=True)
    (context / "serving").mkdir()
    for module in sorted(SERVICE.glob("*.py")):
        shutil.copyfile(module, context / "serving" / module.name)
    small = model["format"] == "onnx-int8"
    for file in sorted(checkpoint.iterdir()):
        if file.name in CHECKPOINT_FILES or (file.suffix == ".safetensors" and not small):
            _link(file.resolve(), context / "checkpoint" / file.name)
    if small:
        limits = {name: model[name] for name in ("max_prompt_tokens", "max_new_tokens")}
        write(checkpoint, context / "checkpoint", **limits)
    about = {**model, "files": digests(context / "checkpoint")}
    (context / "model.json").write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", "utf-8")


def _measure(request: Mapping[str, Any], quantised: Path, result: Path) -> None:
    """Write what 8-bit weights cost and bring; end the build when they agree too seldom with the checkpoint."""
    limits = {name: request["model"][name] for name in ("max_prompt_tokens", "max_new_tokens")}
    found = measure(Path(request["checkpoint"]), quantised, request["prompts"], **limits)
    result.write_text(found.to_json(), "utf-8")
    told = (
        f"8-bit weights choose {found.same_tokens:.1%} of the checkpoint's tokens and give {found.same_answers:.1%} "
        f"of its answers to {found.prompts} prompts, {found.decode_speedup:.1f} times as fast"
    )
    print(told)
    if found.same_tokens < request["min_agreement"]:
        sys.exit(
            f"{told}: less than packaging.min_agreement = {request['min_agreement']:g}; choose packaging.format = "
            "'torch', or lower it"
        )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _digest(source: Path, rest: str) -> str:
    """Return the SHA-256 (hex) of `rest` and of the names and contents of all that a Bento's source holds."""
    total = hashlib.sha256(rest.encode())
    for path in sorted(path for path in source.rglob("*") if path.is_file() and path.name != "bentofile.yaml"):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        total.update(path.relative_to(source).as_posix().encode() + b"\0" + content)
    return total.hexdigest()


def _is_whole(bento: Path, content: str, rest: str) -> bool:
    import yaml

    about = bento / "bento.yaml"
    if not about.is_file():
        return False
    labels = yaml.safe_load(about.read_text("utf-8")).get("labels") or {}
    return labels.get("content_sha256") == content and _digest(bento / "src", rest) == content


def _bentoml_build(
    request: Mapping[str, Any], context: Path, home: Path, labels: Mapping[str, str], pins: list[str]
) -> Path:
    """Build in a store of its own, so that a build that is cut short leaves nothing in the real one."""
    home.mkdir()
    os.environ["BENTOML_HOME"] = str(home)
    import bentoml
    from bentoml._internal import configuration

    # BentoML asks for uv, and would install it with pip, even where nothing is to be locked: 8 of 11 seconds.
    configuration.get_uv_command = lambda: ["uv"]
    bento = bentoml.bentos.build(
        "serving.service:Student",
        name=request["name"],
        version=request["version"],
        build_ctx=str(context),
        include=["serving/*.py", "model.json", "checkpoint/*"],
        labels=labels,
        description=_readme(request),
        python={"packages": pins, "lock_packages": False},
    )
    return Path(bento.path)


def _readme(request: Mapping[str, Any]) -> str:
    served = f"{request['name']}, model version {request['model']['model_version']}: POST /generate, POST /stream\n"
    _, _, card = request["card"].partition("\n# ")  # what stands before its title is for model hubs
    return f"{served}\n# {card}" if card else served


def main() -> None:
    """Build the Bento that REQUEST.json asks for."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that scratch folders are removed
    if len(sys.argv) != 2:
        sys.exit("usage: python -m deployments.bento.builder REQUEST.json")
    path = Path(sys.argv[1])
    _build(json.loads(path.read_text("utf-8")), path.with_name(MEASURED))


if __name__ == "__main__":
    main()
