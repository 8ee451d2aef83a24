"""Prompts: the checkpoint's own format, cut where it may be cut."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from distill.errors import InputError
from distill.prompts import encode, ensure_chat_template, fingerprint, load_tokenizer, vocabulary_size

PROMPTS = ["The printer does not print", "Ünïcode? 漢字 <user> and\n\nlines", " ", "log in", "log in"]


def test_a_batch_is_encoded_as_the_chat_template_encodes_each_prompt(tiny_checkpoint: Path) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    encoded = encode(tokenizer, PROMPTS, 100)
    assert encoded.truncated == 0
    for ids, prompt in zip(encoded.ids, PROMPTS, strict=True):
        turn = [{"role": "user", "content": prompt}]
        expected = tokenizer.apply_chat_template(turn, tokenize=True, add_generation_prompt=True, return_dict=False)
        assert ids.dtype == np.int32
        assert ids.tolist() == expected


def test_a_long_prompt_loses_the_beginning_of_its_text_and_nothing_of_the_template(tiny_checkpoint: Path) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    whole = encode(tokenizer, ["a very long prompt that says log in"], 100).ids[0].tolist()
    encoded = encode(tokenizer, ["short", "a very long prompt that says log in"], 10)
    assert encoded.truncated == 1
    assert encoded.ids[1].tolist() == whole[:1] + whole[-9:]
    assert tokenizer.decode(encoded.ids[1]).startswith("<user>")
    assert tokenizer.decode(encoded.ids[1]).endswith("log in<answer>")


def test_a_limit_that_the_template_alone_fills_is_refused(tiny_checkpoint: Path) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    with pytest.raises(InputError, match="max_prompt_tokens = 2 leaves no room"):
        encode(tokenizer, ["log in"], 2)
    assert [len(ids) for ids in encode(tokenizer, ["log in to my account"], 3).ids] == [3]


def test_a_checkpoint_without_a_chat_template_takes_the_text_as_it_is(tiny_checkpoint: Path) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    tokenizer.chat_template = None
    ensure_chat_template(tokenizer)
    encoded = encode(tokenizer, [*PROMPTS, ""], 100)
    for ids, prompt in zip(encoded.ids, PROMPTS, strict=False):
        assert ids.tolist() == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert encoded.ids[-1].tolist() == [tokenizer.eos_token_id]  # no prompt is without a token
    assert encode(tokenizer, ["log in to my account"], 2).ids[0].tolist() == encoded_tail(tokenizer)


def encoded_tail(tokenizer: object) -> list[int]:
    return tokenizer("log in to my account", add_special_tokens=False)["input_ids"][-2:]  # type: ignore[operator, no-any-return]


def test_a_tokenizer_that_begins_texts_with_bos_keeps_doing_so(tiny_checkpoint: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(tiny_checkpoint)
    tokenizer.bos_token = "<user>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<user> $A", special_tokens=[("<user>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = None
    ensure_chat_template(tokenizer)
    assert encode(tokenizer, ["log in"], 100).ids[0].tolist() == tokenizer("log in")["input_ids"]


def test_no_prompts_are_no_error(tiny_checkpoint: Path) -> None:
    assert encode(load_tokenizer(tiny_checkpoint), [], 1).ids == []


def test_the_fingerprint_tells_vocabularies_apart_but_not_chat_templates_or_copies(
    tiny_checkpoint: Path, other_checkpoint: Path, tmp_path: Path
) -> None:
    one, copy = load_tokenizer(tiny_checkpoint), shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    again = load_tokenizer(copy)
    again.chat_template = "{{ 'another' }}"
    again("some text", padding="max_length", truncation=True, max_length=7)  # leaves its mark in the backend
    assert fingerprint(one) == fingerprint(again)
    assert fingerprint(one) != fingerprint(load_tokenizer(other_checkpoint))
    again.eos_token = "<user>"
    assert fingerprint(one) != fingerprint(again)


def test_the_vocabulary_reaches_to_the_largest_id(tiny_checkpoint: Path) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    assert vocabulary_size(tokenizer) == len(tokenizer)
    tokenizer.add_tokens(["<more>"])
    assert vocabulary_size(tokenizer) == tokenizer.convert_tokens_to_ids("<more>") + 1


def test_a_damaged_chat_template_is_an_input_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message")
    with pytest.raises(InputError, match=r"chat template of .*checkpoint.* cannot be used"):
        load_tokenizer(folder)


def test_a_damaged_tokenizer_is_an_input_error_that_names_the_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "damaged")
    (copy / "tokenizer.json").write_text('{"version": "1.0", ')
    with pytest.raises(InputError, match="damaged"):
        load_tokenizer(copy)
