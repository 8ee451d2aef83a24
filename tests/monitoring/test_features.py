"""Features: what each one is, which are made, and that prompts and labels stay out of them."""

import csv
import gzip
import math
import os
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import tokenizers
from pydantic import ValidationError
from tokenizers import decoders, models, pre_tokenizers, trainers

from monitoring import text
from monitoring.drift import compare
from monitoring.errors import InputError
from monitoring.feature_settings import FEATURES, FeatureSettings
from monitoring.features import features
from monitoring.profile import ReferenceProfile
from monitoring.settings import DriftSettings
from monitoring.text import load_tokenizer

EVERYTHING = FeatureSettings(use=FEATURES)


def logged(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({"prompt": ["Reset my password, my key", "Größe", "  "], **columns}, index=[7, 3, 5])


def test_text_features_are_what_their_names_say() -> None:
    made = features(logged())
    assert list(made.index) == [7, 3, 5]
    assert made["prompt_chars"].tolist() == [25, 5, 2]
    assert made["prompt_words"].tolist() == [5, 1, 0]
    assert made["type_token_ratio"].tolist()[:2] == [4 / 5, 1]
    assert np.isnan(made["type_token_ratio"][5])
    assert made["non_ascii_share"].tolist() == [0, pytest.approx(2 / 5), 0]


def test_prompts_labels_and_ids_are_no_features() -> None:
    frame = logged(reference=["a", "b", "c"], request_id=["1", "2", "3"], model_version="4", timestamp=pd.Timestamp(0))
    assert set(features(frame)) == {*FeatureSettings().use} - {"meta_*"}
    everything = features(frame, EVERYTHING)
    assert set(everything) == {*FEATURES} - {"meta_*"}
    assert not everything.isin(frame["prompt"]).any(axis=None)


def test_columns_the_log_lacks_are_columns_of_missing_values() -> None:
    made = features(logged())
    assert made[["mean_logprob", "latency_ms", "response"]].isna().all(axis=None)
    assert made["latency_ms"].dtype == np.float64
    assert made["response"].tolist() == [None] * 3
    assert made["refusal"].isna().all()


def test_meta_columns_are_numbers_or_texts() -> None:
    made = features(
        logged(
            meta_tokens=pd.array([1, None, 3], "Int64"),
            meta_paid=[True, False, True],
            meta_team=["a", None, "b"],
            meta_mixed=[1, "x", None],
        )
    )
    assert made["meta_tokens"].tolist() == [1, pytest.approx(np.nan, nan_ok=True), 3]
    assert made["meta_paid"].tolist() == [1, 0, 1]
    assert made["meta_team"].tolist() == ["a", None, "b"]
    assert made["meta_mixed"].tolist() == ["1", "x", None]


def test_a_missing_prompt_has_missing_features_and_an_empty_frame_none() -> None:
    tokenizer = byte_level(["a a a"])
    some = pd.DataFrame({"prompt": pd.array(["a", None], "string"), "response": ["x", None]})
    made = features(some, EVERYTHING, tokenizer)
    assert made.loc[1].isna().all()
    for rows in (some, some.assign(prompt=None)):
        none = features(rows.iloc[:0], EVERYTHING, tokenizer)
        assert len(none) == 0
        assert none.dtypes.to_dict() == made.dtypes.to_dict()


def test_a_frame_without_prompts_is_refused() -> None:
    with pytest.raises(InputError, match="'prompt' is missing"):
        features(pd.DataFrame({"text": ["a"]}))


def byte_level(texts: Iterable[str], size: int = 300) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def test_entropy_and_compression_are_what_their_names_say() -> None:
    made = features(pd.DataFrame({"prompt": ["aaaa", "abab", "abcd", "", "x" * 1000]}), EVERYTHING)
    assert made["char_entropy"].tolist()[:3] == [0, 1, 2]
    assert math.isnan(made["char_entropy"][3])
    assert math.isnan(made["zlib_ratio"][3])
    assert made["zlib_ratio"][0] == len(zlib.compress(b"aaaa")) / 4
    assert made["zlib_ratio"][4] < 0.1


def test_tokens_are_counted_without_special_ones_truncation_or_padding(tmp_path: Path) -> None:
    tokenizer = byte_level(["password password"] * 9)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = load_tokenizer(tmp_path)
    prompts = ["password password", "x y z", ""]
    made = features(pd.DataFrame({"prompt": prompts}), EVERYTHING, read)
    assert made["token_count"].tolist() == [2, 5, 0]


def test_a_byte_level_tokenizer_does_not_know_what_it_splits_apart() -> None:
    tokenizer = byte_level(["reset my password"] * 9)
    frame = pd.DataFrame({"prompt": ["reset my password", "reset my kubernetes", "kubernetes reset", "  ", "Größe"]})
    made = features(frame, FeatureSettings(use=("unknown_rate",)), tokenizer)["unknown_rate"]
    assert made.tolist()[:3] == [0, pytest.approx(1 / 3), 1 / 2]
    assert math.isnan(made[3])
    assert made[4] == 1
    lenient = features(frame, FeatureSettings(use=("unknown_rate",), word_pieces=30), tokenizer)["unknown_rate"]
    assert lenient.max() == 0


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel({"my": 0, "key": 1, "?": 2}, unk_token="?"),
        models.WordPiece({"my": 0, "key": 1, "?": 2}, unk_token="?"),
        models.Unigram([("?", 0.0), ("my", -1.0), ("key", -1.0)], unk_id=0),
        models.BPE(
            {"<u>": 0, "<0x78>": 1, "m": 2, "y": 3, "k": 4, "e": 5, "<0x31>": 6},
            [],
            unk_token="<u>",
            byte_fallback=True,
        ),
    ],
    ids=["word level", "word piece", "unigram", "byte fallback"],
)
def test_unknown_words_have_an_unknown_token_or_a_bare_byte(model: models.Model) -> None:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = features(pd.DataFrame({"prompt": ["my key", "my x1", "x1"]}), FeatureSettings(), tokenizer)
    assert made["unknown_rate"].tolist() == [0, 1 / 2, 1]


def test_without_a_tokenizer_what_needs_one_is_missing() -> None:
    made = features(logged())
    assert made[["token_count", "unknown_rate"]].isna().all(axis=None)
    assert made["token_count"].dtype == np.float64


def test_a_checkpoint_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json: No such file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json is no tokenizer"):
        load_tokenizer(tmp_path)


def test_texts_that_cannot_be_encoded_are_measured_all_the_same() -> None:
    made = features(pd.DataFrame({"prompt": ["half \ud800 a pair", "\x00"]}), EVERYTHING, byte_level(["a"]))
    assert made["prompt_chars"].tolist() == [13, 1]
    assert made.drop(columns=["response", "refusal", "mean_logprob", "latency_ms"]).notna().all(axis=None)


def test_topics_are_fixed_whatever_the_order_case_and_neighbours_of_the_words() -> None:
    prompts = ["Deep neural networks", "networks NEURAL deep", "secure key exchange", " ", None]
    made = features(pd.DataFrame({"prompt": prompts}))["topic"]
    assert made.tolist() == ["08", "08", "02", None, None]  # these values are frozen in profiles: they cannot change
    assert features(pd.DataFrame({"prompt": prompts[2:3]}))["topic"].tolist() == ["02"]
    words = pd.Series([f"word{i} other{i * 7}" for i in range(4000)])
    shares = pd.Series(text.topics(words)).value_counts(normalize=True)
    assert len(shares) == text.TOPICS
    assert shares.max() < 0.2


@pytest.mark.parametrize(
    ("response", "refused"),
    [
        ("I'm sorry, but I can't help with that.", 1),
        ("I\u2019m very sorry; I cannot do that", 1),
        ("Sorry, but I cannot answer.", 1),
        ("As an AI language model, I have no opinion", 1),
        ("I am not able to say", 1),
        ("billing", 0),
        ("Say sorry to your customer", 0),
        ("You write: I cannot log in", 0),
        ("I canceled it", 0),
    ],
)
def test_a_refusal_is_known_by_how_it_begins(response: str, refused: int) -> None:
    assert features(pd.DataFrame({"prompt": ["a"], "response": [response]}))["refusal"].tolist() == [refused]


def test_the_refusal_pattern_is_a_setting() -> None:
    frame = pd.DataFrame({"prompt": ["a"] * 3, "response": ["I cannot", "nein, danke", None]})
    made = features(frame, FeatureSettings(refusal="^nein"))["refusal"]
    assert made.tolist() == [0, 1, pytest.approx(math.nan, nan_ok=True)]


def test_only_the_chosen_features_are_made_in_their_order() -> None:
    frame = logged(meta_b=[1, 2, 3], meta_a=["x", "y", "z"], meta_c=[1, 2, 3])
    assert list(features(frame, FeatureSettings(use=("topic", "meta_b")))) == ["topic", "meta_b"]
    assert list(features(frame, FeatureSettings(use=("meta_c", "meta_*", "topic")))) == [
        *("meta_c", "meta_a", "meta_b", "topic")
    ]
    lacking = features(frame, FeatureSettings(use=("meta_z",)))
    assert lacking["meta_z"].tolist() == [None] * 3


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"use": ["prompt_char"]}, "'prompt_char' is no feature.*the nearest is prompt_chars"),
        ({"use": "topic, latency"}, "'latency' is no feature.*the nearest is latency_ms"),
        ({"use": ["topic", "topic"]}, "topic is named twice"),
        ({"use": ["meta_"]}, r"'meta_' is no feature.*the nearest is meta_\*"),
        ({"use": ["meta_**"]}, r"'meta_\*\*' is no feature.*the nearest is meta_\*"),
        ({"use": ["meta_region*"]}, r"'meta_region\*' is no feature.*the nearest is meta_\*"),
        ({"use": []}, "at least 1"),
        ({"refusal": "("}, "no regular expression"),
        ({"refusal": ""}, "at least 1"),
    ],
)
def test_a_wrong_choice_is_refused_with_the_nearest_name(chosen: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        FeatureSettings.model_validate(chosen)


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what installs a package with one entry point named `own` for each source of a function `own`."""

    def install(*sources: str) -> None:
        for number, source in enumerate(sources):
            name = f"own_feature_{tmp_path.name}_{number}".replace("-", "_")
            info = tmp_path / f"{name}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(f"[redistill.features]\nown = {name}:own\n")
            (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_ones_own_feature_is_used_when_it_is_named(registered: Callable[..., None]) -> None:
    registered("def own(frame):\n    frame['prompt'] = frame['prompt'].str.count('a')\n    return frame['prompt']\n")
    frame = logged()
    made = features(frame, FeatureSettings(use="own,prompt_chars"))  # type: ignore[arg-type]
    assert made["own"].tolist() == [1, 0, 0]
    assert made["own"].dtype == np.float64
    assert frame.equals(logged())
    assert "own" not in features(frame)
    with pytest.raises(ValidationError, match=r"'owm' is no feature.*the nearest is own"):
        FeatureSettings(use=("owm",))


def test_ones_own_feature_is_not_loaded_unless_named(registered: Callable[..., None]) -> None:
    registered("raise RuntimeError('loaded')")
    features(logged())
    with pytest.raises(InputError, match=r"feature 'own' \(entry point own_feature_\w+:own .*RuntimeError: loaded"):
        features(logged(), FeatureSettings(use=("own",)))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def own(frame): return frame['nowhere']", "failed: KeyError"),
        ("def own(frame): return frame['prompt'].iloc[1:]", "returned 2 values for 3 rows"),
        ("def own(frame): return [1, 2, 3]", "returned list, not a pandas Series"),
        ("def own(frame): return frame['prompt'].reset_index(drop=True)", "another index"),
        ("", "failed: AttributeError"),
    ],
    ids=["raises", "too short", "a list", "another index", "no function"],
)
def test_a_failing_feature_of_ones_own_is_one_error_with_its_entry_point(
    registered: Callable[..., None], source: str, said: str
) -> None:
    registered(source)
    with pytest.raises(InputError, match=rf"feature 'own' \(entry point own_feature_\w+:own .*{said}.*features\.use"):
        features(logged(), FeatureSettings(use=("own",)))


def test_an_own_feature_that_two_packages_register_is_refused(registered: Callable[..., None]) -> None:
    registered("", "")
    with pytest.raises(InputError, match=r"registered as own_feature_\w+_0:own and as own_feature_\w+_1:own"):
        features(logged(), FeatureSettings(use=("own",)))


ARXIV = Path(
    os.environ.get("REDISTILL_ARXIV", Path(__file__).parents[3] / "shared" / "data" / "arxiv_titles_2008_2016.csv.gz")
)
needs_arxiv = pytest.mark.skipif(not ARXIV.is_file(), reason=f"no arXiv titles at {ARXIV}; set REDISTILL_ARXIV")


def titles() -> tuple[pd.DataFrame, npt.NDArray[np.int64]]:
    """Return the titles and the hashes that split them."""
    with gzip.open(ARXIV, "rt", newline="") as file:
        rows = pd.DataFrame(csv.DictReader(file))
    return rows, np.array([zlib.crc32(name.encode()) % 100 for name in rows["arxiv_id"]])


@needs_arxiv
def test_quiet_arxiv_titles_raise_no_alarm_in_any_feature_and_those_of_2016_do_in_the_words() -> None:
    rows, hashes = titles()
    year = rows["date"].str[:4].astype(int).to_numpy()
    tokenizer = byte_level(rows.loc[rows["date"] < "2014", "title"], 2048)
    made = features(pd.DataFrame({"prompt": rows["title"], "response": rows["primary_cat"]}), EVERYTHING, tokenizer)
    then = np.isin(year, (2012, 2013))
    profile = ReferenceProfile.build(
        made[then & (hashes >= 60) & (hashes < 80)],
        window="2012..2014",
        model_version="1",
        max_categories=50,
        sample_rows=100,
        seed=0,
    )
    quiet, later = made[then & (hashes >= 80)], made[(year == 2016) & (hashes >= 60)]
    settings = DriftSettings()
    assert [
        name
        for seed in range(20)
        for name in compare(profile, quiet.sample(500, random_state=seed), "quiet", settings).drifted_columns
    ] == []
    drifted = [
        compare(profile, later.sample(500, random_state=seed), "2016", settings).drifted_columns for seed in range(20)
    ]
    assert sum("unknown_rate" in names for names in drifted) >= 15


@needs_arxiv
@pytest.mark.slow
def test_all_features_of_100k_prompts_take_20_seconds_of_one_core() -> None:
    rows, _ = titles()
    frame = pd.DataFrame(
        {"prompt": np.resize(rows["title"], 100_000), "response": np.resize(rows["primary_cat"], 100_000)}
    )
    tokenizer = byte_level(rows["title"].head(5000), 2048)
    began = time.process_time()
    features(frame, EVERYTHING, tokenizer)
    assert time.process_time() - began < 20
