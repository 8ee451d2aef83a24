"""The demos' tokenizer: nothing is unknown, answers are short, and the format survives saving."""

from pathlib import Path

import pytest

from demo.tokenizer import ANSWER, EOS, PAD, train_tokenizer

TEXTS = [f"where is order {n} of the blue kettle" for n in range(300)]
ANSWERS = ["shipping / low", "smart-home / high"]


@pytest.mark.parametrize(
    "text", ["snow ☃ and  two spaces", "TAB\tand\nline", "Ünïcödé", "0x00 \x01", "never seen: qzxj"]
)
def test_any_text_comes_back_as_it_was(text: str) -> None:
    tokenizer = train_tokenizer(TEXTS, ANSWERS, 400)
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_an_answer_that_no_text_contains_is_spelt_in_few_tokens() -> None:
    tokenizer = train_tokenizer(TEXTS, ANSWERS, 400)
    assert len(tokenizer.tokenize("smart-home / high")) <= 6
    assert len(tokenizer.tokenize("zzart-qome / jigh")) > 6


def test_the_same_texts_give_the_same_tokenizer() -> None:
    one, other = (train_tokenizer(TEXTS, answers, 400) for answers in (ANSWERS, ANSWERS[::-1]))
    assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()


def test_the_format_travels_with_the_checkpoint(tmp_path: Path) -> None:
    from demo.teacher import make_student
    from distill.prompts import encode, load_tokenizer

    tokenizer = train_tokenizer(TEXTS, ANSWERS, 400)
    loaded = load_tokenizer(make_student(tmp_path / "base", tokenizer, 16, 1, 1, seed=0))
    [ids] = encode(loaded, ["where is it"], 64).ids
    assert loaded.decode(ids) == "where is it" + ANSWER
    assert (loaded.pad_token, loaded.eos_token) == (PAD, EOS)
    assert loaded.padding_side == "right"
