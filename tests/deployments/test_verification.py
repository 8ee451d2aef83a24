import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from deployments.errors import Failure, InputError
from deployments.verification import differences, file_hashes, hashes, verify_checkpoint
from distill.checkpoint import digest


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    (folder / "onnx").mkdir(parents=True)
    for number in (1, 2):
        weights = {f"layer{number}": np.arange(64, dtype=np.float32) + number}
        save_file(weights, folder / f"model-{number}.safetensors", {"format": "pt"})
    (folder / "onnx" / "model.onnx").write_bytes(b"onnx")
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "config.json").write_text('{"vocab_size": 1}')
    (folder / ".cache").write_text("of no account")
    return folder


def test_the_hash_of_the_whole_is_the_one_the_training_writes(checkpoint: Path, tiny_checkpoint: Path) -> None:
    assert hashes(checkpoint)["sha256"] == digest(checkpoint)
    assert hashes(tiny_checkpoint)["sha256"] == digest(tiny_checkpoint)


def test_what_was_registered_is_verified_and_hidden_files_do_not_count(checkpoint: Path) -> None:
    tags = hashes(checkpoint)
    (checkpoint / ".cache").write_text("changed")
    (checkpoint / ".git").mkdir()
    (checkpoint / ".git" / "head").write_text("new")
    verify_checkpoint(checkpoint, tags)
    verify_checkpoint(checkpoint, {"sha256": tags["sha256"]})
    assert set(json.loads(tags["files"])) == {
        "model-1.safetensors", "model-2.safetensors", "onnx/model.onnx", "tokenizer.json", "chat_template.jinja",
        "config.json",
    }  # fmt: skip


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("model-2.safetensors", flip, "weights model-2.safetensors has SHA-256 {found}, registered was {registered}"),
        (
            "model-1.safetensors",
            cut_short,
            "model-1.safetensors is truncated: its header tells of 360 bytes, found are 260",
        ),
        ("model-1.safetensors", Path.unlink, "weights model-1.safetensors is missing, registered with SHA-256"),
        ("onnx/model.onnx", flip, "onnx/model.onnx has SHA-256 {found}, registered was {registered}"),
        ("tokenizer.json", flip, "the tokenizer is a foreign one: tokenizer.json has SHA-256 {found}"),
        ("chat_template.jinja", flip, "the tokenizer is a foreign one: chat_template.jinja has SHA-256 {found}"),
        ("config.json", flip, "config.json has SHA-256 {found}, registered was {registered}"),
    ],
)
def test_a_changed_file_is_refused_by_name_with_what_was_expected_and_found(
    checkpoint: Path, name: str, change: Callable[[Path], None], said: str
) -> None:
    tags = hashes(checkpoint)
    before = json.loads(tags["files"])
    change(checkpoint / name)
    found = file_hashes(checkpoint).get(name)
    with pytest.raises(Failure, match="is not what was registered") as caught:
        verify_checkpoint(checkpoint, tags)
    assert said.format(found=found, registered=before[name]) in str(caught.value)
    assert len(differences(checkpoint, tags)) == 1
    if "/" not in name:
        assert differences(checkpoint, {"sha256": tags["sha256"]})


def test_a_foreign_tokenizer_from_another_model_is_named_as_one(
    tiny_checkpoint: Path, other_checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "mixed"))
    tags = hashes(folder)
    shutil.copy(other_checkpoint / "tokenizer.json", folder)
    with pytest.raises(Failure, match=r"tokenizer is a foreign one: tokenizer.json has SHA-256 \w{64}"):
        verify_checkpoint(folder, tags)
    assert hashes(folder)["tokenizer_sha256"] != tags["tokenizer_sha256"]


def test_a_file_that_was_not_registered_is_refused(checkpoint: Path) -> None:
    tags = hashes(checkpoint)
    (checkpoint / "tokenizer.model").write_bytes(b"another one")
    (checkpoint / "modeling.py").write_text("import os")
    assert [text.partition(", found")[0] for text in differences(checkpoint, tags)] == [
        "modeling.py was not registered",
        "the tokenizer is a foreign one: tokenizer.model was not registered",
    ]


def test_a_missing_folder_and_tags_without_a_hash_are_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"'.*/nowhere' is gone"):
        verify_checkpoint(tmp_path / "nowhere", hashes(checkpoint))
    with pytest.raises(InputError, match="cannot be verified: its version has no tag sha256"):
        verify_checkpoint(checkpoint, {"verdict": "pass"})
    with pytest.raises(Failure, match="the tag files of the version is damaged"):
        verify_checkpoint(checkpoint, {"files": "[1"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no safetensors file: it has 0 bytes"),
        (b"no weights at all", "is no safetensors file: it has 17 bytes"),
        ((50).to_bytes(8, "little") + b"{}", "is truncated: its header alone has 58 bytes, found are 10"),
        ((2).to_bytes(8, "little") + b"[]", "header cannot be read"),
        ((8).to_bytes(8, "little") + b'{"a": 1}', "header cannot be read"),
        ((2).to_bytes(8, "little") + b"{}more", "is longer than it was written: its header tells of 10 bytes"),
    ],
)
def test_a_broken_safetensors_file_is_not_registered_at_all(checkpoint: Path, content: bytes, said: str) -> None:
    (checkpoint / "model-1.safetensors").write_bytes(content)
    with pytest.raises(Failure, match=said):
        hashes(checkpoint)
