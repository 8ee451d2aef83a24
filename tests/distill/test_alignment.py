"""What a teacher with another tokenizer said, in the student's tokens: the text stays, and alike means alike."""

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from distill.alignment.alignment import NONE
from distill.alignment.answers import Aligner, Answer, require
from distill.alignment.pieces import INSIDE, plain, spoken, written
from distill.alignment.spans import spans
from distill.alignment.vocabulary import texts, token_map
from distill.errors import InputError

CORPUS = [
    "The printer on the second floor does not print any more", "I cannot log in since the password was changed",
    "billing high", "technical low", "naïve café über straße", "日本語のテキスト 你好世界", "emoji 😀👩‍👩‍👧 here",
]  # fmt: skip
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TEXT = some.lists(
    some.sampled_from(
        [*CORPUS, " ", "   ", "\n\t", "e\u0301", "\u0301", "👩‍👩‍👧", "世", "x", "\u00a0", "<eos>", "�", "ß", "A", "é"]
    )
    | some.text(max_size=6),
    max_size=8,
).map("".join)


def trained(backend: Tokenizer, trainer: Any, unknown: str | None = None) -> PreTrainedTokenizerFast:
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token=unknown)


def byte_level(size: int, *, trim: bool = False) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if trim:  # as Llama 3 does: offsets leave spaces out
        from tokenizers import processors

        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(
        backend, trainers.BpeTrainer(vocab_size=size, special_tokens=["<eos>"], initial_alphabet=alphabet,
                                     show_progress=False)
    )  # fmt: skip


def metaspace() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    special = ["<unk>", "<eos>", *BYTES]
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    )
    parts = json.loads(backend.to_str())
    parts["added_tokens"] = parts["added_tokens"][:2]  # bytes are tokens like others
    backend = Tokenizer.from_str(json.dumps(parts))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")


def letters() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.decoder = decoders.Fuse()
    return trained(
        backend, trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "<eos>"], show_progress=False), "<unk>"
    )


def word_pieces() -> PreTrainedTokenizerFast:
    """Lower case, without accents, and without the spaces between words."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return trained(
        backend, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["<unk>", "<eos>"], show_progress=False),
        "<unk>",
    )  # fmt: skip


TOKENIZERS: dict[str, PreTrainedTokenizerFast] = {
    "bytes 400": byte_level(400),
    "bytes 290": byte_level(290),
    "bytes, trimmed offsets": byte_level(340, trim=True),
    "metaspace": metaspace(),
    "letters": letters(),
    "word pieces": word_pieces(),
}
LOSSLESS = ["bytes 400", "bytes 290", "bytes, trimmed offsets"]


def ids_of(tokenizer: Any, text: str) -> NDArray[np.int32]:
    return np.array(plain(tokenizer).encode(text, add_special_tokens=False).ids, np.int32)


def aligner(teacher: str, student: str, longest: int = 10_000) -> Aligner:
    one, other = TOKENIZERS[teacher], TOKENIZERS[student]
    return Aligner(one, other, stops=[one.eos_token_id], end=other.eos_token_id, longest=longest)


ALIGNERS = {(one, other): aligner(one, other) for one in TOKENIZERS for other in TOKENIZERS}


def ended(teacher: str, text: str) -> NDArray[np.int32]:
    return np.append(ids_of(TOKENIZERS[teacher], text), TOKENIZERS[teacher].eos_token_id).astype(np.int32)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TEXT, some.sampled_from(LOSSLESS), some.sampled_from(LOSSLESS))
def test_the_students_answer_is_the_teachers_text(text: str, teacher: str, student: str) -> None:
    found = ALIGNERS[teacher, student].answer(ended(teacher, text))
    assert found.ids[-1] == TOKENIZERS[student].eos_token_id
    assert TOKENIZERS[student].decode(found.ids[:-1]) == text.rstrip("�") or text.endswith("�")
    assert found.ids[:-1].tolist() == ids_of(TOKENIZERS[student], TOKENIZERS[student].decode(found.ids[:-1])).tolist()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXT, some.sampled_from(sorted(ALIGNERS)))
def test_a_matched_token_stands_for_the_same_bytes_after_the_same_text(text: str, pair: tuple[str, str]) -> None:
    teacher, student = pair
    said = ended(teacher, text)
    found = ALIGNERS[pair].answer(said)
    own, theirs = texts(TOKENIZERS[student]), texts(TOKENIZERS[teacher])
    compared = found.theirs[found.theirs != NONE]
    assert (np.diff(compared) > 0).all(), "both go on from left to right"
    assert not (found.matched & (found.theirs == NONE)).any()
    for token, at, matched in zip(found.ids[:-1], found.theirs[:-1], found.matched[:-1], strict=True):
        if matched:
            assert own[token] == theirs[said[at]] != b""
    if {teacher, student} <= set(LOSSLESS) and not text.endswith("�"):
        for number, at in enumerate(found.theirs[:-1]):
            if at != NONE:  # both have read the same
                before = b"".join(theirs[token] for token in said[:at])
                assert b"".join(own[token] for token in found.ids[:number]) == before


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TEXT, some.sampled_from(LOSSLESS))
def test_with_one_tokenizer_every_token_is_matched_with_itself(text: str, name: str) -> None:
    said = ended(name, text.rstrip("�"))
    found = ALIGNERS[name, name].answer(said)
    assert found.ids.tolist() == said.tolist()
    assert found.matched.all()
    assert found.theirs.tolist() == list(range(len(said)))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(TEXT, some.sampled_from(sorted(TOKENIZERS)), some.randoms(use_true_random=False))
def test_tokens_that_no_tokenizer_would_write_have_a_text_and_ends_within_it(text: str, name: str, draw: Any) -> None:
    tokenizer = TOKENIZERS[name]
    ids = ids_of(tokenizer, text).tolist() + [draw.randrange(len(tokenizer)) for _ in range(6)]
    draw.shuffle(ids)
    found = spoken(tokenizer, np.array(ids, np.int32))
    known = [end for end in found.ends if end != INSIDE]
    assert len(found.ends) == len(ids)
    assert known == sorted(known)
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith(found.text)
    assert not known or known[-1] <= len(found.text)


def test_borders_are_those_of_the_text_whatever_a_post_processor_cuts_off() -> None:
    tokenizer = TOKENIZERS["bytes, trimmed offsets"]
    text = "does not   print 😀!"
    trimmed = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    assert any(
        text[end:start].strip(" ") == "" != text[end:start] for (_, end), (start, _) in itertools.pairwise(trimmed)
    )
    found = written(plain(tokenizer), text)
    assert all(low == high for low, high in found.borders if low <= high)
    assert [low > high for low, high in found.borders].count(True) > 0, "bytes of the emoji"


def test_what_reads_like_the_end_is_text() -> None:
    said = ended("bytes 400", "say <eos> now")
    found = ALIGNERS["bytes 400", "bytes 290"].answer(said)
    assert (found.ids == TOKENIZERS["bytes 290"].eos_token_id).sum() == 1


@pytest.mark.parametrize("unfinished", ["😀", "世"])
def test_a_character_that_was_cut_off_is_not_learned(unfinished: str) -> None:
    whole = ids_of(TOKENIZERS["bytes 290"], f"log in {unfinished}")
    found = ALIGNERS["bytes 290", "bytes 400"].answer(whole[:-1])
    assert TOKENIZERS["bytes 400"].decode(found.ids) == "log in "
    assert found.ids[-1] != TOKENIZERS["bytes 400"].eos_token_id, "nor that the answer ends there"


def test_an_answer_without_a_text_is_its_end() -> None:
    for said in ([0], []):
        found = ALIGNERS["bytes 290", "letters"].answer(np.array(said, np.int32))
        assert found.ids.tolist() == [TOKENIZERS["letters"].eos_token_id]
        assert found.matched.tolist() == [bool(said)]


def test_a_longer_answer_than_the_student_gives_is_cut_and_counted() -> None:
    said = [ended("bytes 400", text) for text in ("billing high", "technical low", "x")]
    alignment, report = aligner("bytes 400", "bytes 290", longest=4).align(said)
    assert np.diff(alignment.offsets).max() == 4
    assert report.cut_answers == 2
    assert report.answer_tokens == len(alignment.answers)
    assert "2 answers are cut" in report.told()


def test_tokens_that_the_student_cannot_write_are_counted() -> None:
    _, report = ALIGNERS["bytes 400", "letters"].align([ended("bytes 400", "log in ☃☃")])
    assert report.unknown_tokens > 0
    assert "are unknown to the student's tokenizer" in report.told()


def test_the_map_knows_tokens_by_their_bytes_and_every_end_is_the_students() -> None:
    one, other = TOKENIZERS["metaspace"], TOKENIZERS["bytes 400"]
    found = token_map(one, other, stops=[1, 7], end=0)
    names = one.get_vocab()
    assert found[names["▁on"]] == other.convert_tokens_to_ids("Ġon")
    assert found[names["<0xF0>"]] == other.convert_tokens_to_ids("ð"), "a byte of an emoji"
    assert found[names["t"]] == found[names["<0x74>"]] == other.convert_tokens_to_ids("t")
    assert found[1] == found[7] == 0
    back = token_map(other, one, stops=[0], end=1)
    assert back[other.convert_tokens_to_ids("t")] == names["t"], "not the byte of the same text"


class Counted(Sequence[Any]):
    """A list that counts how often it is looked into."""

    def __init__(self, values: Sequence[Any], looked: list[int]) -> None:
        self.values, self.looked = values, looked

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, at: Any) -> Any:
        self.looked[0] += 1
        return self.values[at]


@pytest.fixture
def decoded() -> Callable[[str, str], tuple[int, int]]:
    """Return decoded(name, text) -> (tokens, tokens that were decoded to cut the text into pieces)."""

    def count(name: str, text: str) -> tuple[int, int]:
        class Backend:
            seen = 0

            def decode(self, ids: list[int], **options: Any) -> str:
                Backend.seen += len(ids)
                return str(TOKENIZERS[name].backend_tokenizer.decode(ids, **options))

        class Counting:
            backend_tokenizer = Backend()
            decode = staticmethod(TOKENIZERS[name].decode)

        ids = ids_of(TOKENIZERS[name], text)
        assert spoken(Counting(), ids) == spoken(TOKENIZERS[name], ids)
        return len(ids), Backend.seen

    return count


@pytest.mark.parametrize("kind", ["words", "emoji", "replacement characters", "broken bytes"])
def test_the_work_grows_as_the_tokens_do(kind: str, decoded: Callable[[str, str], tuple[int, int]]) -> None:
    part = {"words": CORPUS[0], "emoji": "👩‍👩‍👧", "replacement characters": "�", "broken bytes": "\u0301"}[kind]
    for name in ("bytes 290", "metaspace"):
        (few, work), (many, more) = (decoded(name, part * times) for times in (40, 400))
        assert many > 9 * few
        assert more <= 11 * work
        assert more <= 20 * many
    steps = []
    for times in (40, 400):
        text, looked = part * times, [0]
        ends = spoken(TOKENIZERS["bytes 290"], ids_of(TOKENIZERS["bytes 290"], text)).ends
        borders = written(plain(TOKENIZERS["bytes 400"]), text).borders
        spans(Counted(ends, looked), Counted(borders, looked))
        assert looked[0] <= 2 * (len(ends) + len(borders))
        steps.append(looked[0])
    assert steps[1] <= 11 * max(1, steps[0])


def test_spans_are_the_smallest_that_both_cut_out() -> None:
    found = spans([2, INSIDE, 5, 7, 9], [(1, 1), (2, 2), (5, 5), (6, 7), (8, 8), (9, 9)])
    assert [(one.theirs, one.own) for one in found] == [
        ((0, 1), (0, 2)),
        ((1, 3), (2, 3)),
        ((3, 4), (3, 4)),
        ((4, 5), (4, 6)),
    ]
    assert spans([], [(0, 0)]) == spans([1], []) == []
    assert spans([3], [(4, 2), (3, 3)]) == [((0, 1), (0, 2))]


def test_a_share_below_the_limit_is_refused_with_what_was_expected_and_what_to_do() -> None:
    _, report = ALIGNERS["bytes 400", "bytes 290"].align([ended("bytes 400", text) for text in CORPUS])
    require(report, report.aligned_share, "teacher", "student")
    with pytest.raises(InputError, match=r"teacher\.min_aligned is 90\.0%.*choose a student.*or lower") as refused:
        require(report, 0.9, "large", "small")
    assert f"{report.matched_tokens} of {report.answer_tokens} answer tokens" in str(refused.value)
    assert "'large'" in str(refused.value)
    assert "'small'" in str(refused.value)


def test_answers_that_are_the_same_are_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = aligner("bytes 400", "bytes 290")
    worked: list[int] = []
    answer = made._answer
    monkeypatch.setattr(made, "_answer", lambda said: worked.append(1) or answer(said))
    rows: list[Answer] = [made.answer(ended("bytes 400", "billing high")) for _ in range(5)]
    assert len(worked) == 1
    assert rows[0].ids.tolist() == rows[4].ids.tolist()
