"""A real SGLang server asked as any endpoint that speaks OpenAI's protocol; and what it tells Prometheus."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deployments.sglang.server import Options, Served, interpreter, serving
from distill.buying import obtain
from distill.errors import InputError
from distill.generation import Sampling
from distill.prompts import encode, load_tokenizer
from distill.signals import SignalStore
from distill.teachers.local import LocalTeacher
from distill.teachers.openai import OpenAITeacher
from distill.teachers.protocol import AnswerSignal
from distill.teachers.spoken import spoken

pytestmark = [pytest.mark.sglang, pytest.mark.integration]
KEY, NEW = "open sesame", 12
GRAFANA = Path(__file__).resolve().parents[2] / "deployments" / "grafana"
WORDS = ["The printer on the second floor", "I cannot log in since", "Please send me", "How do I set up the mail"]
TEXTS = [f"{WORDS[at % 4]} {at} " + "does not print any more " * (at % 5) for at in range(40)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, checkpoint_maker: Callable[..., Path]) -> Path:
    return checkpoint_maker(tmp_path_factory.mktemp("sglang") / "teacher", context=1024)


@pytest.fixture(scope="module")
def served(checkpoint: Path) -> Iterator[Served]:
    interpreter()  # an error here is told once, and by its own name
    with serving(Options(str(checkpoint), api_key=KEY)) as server:
        yield server


def teacher_at(served: Served, checkpoint: Path, **options: object) -> OpenAITeacher:
    tokenizer = load_tokenizer(checkpoint)
    texts = spoken(tokenizer, TEXTS, encode(tokenizer, TEXTS, 200))
    given = {"max_new_tokens": NEW, "api_key": KEY, "outage_seconds": 20.0, **options}
    return OpenAITeacher(str(checkpoint), [served.url], spoken=texts, **given)  # type: ignore[arg-type]


def texts_of(teacher: OpenAITeacher | LocalTeacher, checkpoint: Path) -> list[str]:
    tokenizer = load_tokenizer(checkpoint)
    found = dict(teacher.ask(encode(tokenizer, TEXTS, 200).ids))
    return [tokenizer.decode(found[row].answer, skip_special_tokens=True) for row in range(len(TEXTS))]


def test_its_answers_are_the_models_and_are_bought_once(served: Served, checkpoint: Path, tmp_path: Path) -> None:
    teacher = teacher_at(served, checkpoint)
    own = texts_of(LocalTeacher(checkpoint, top_k=1, max_new_tokens=NEW), checkpoint)
    theirs = texts_of(teacher, checkpoint)
    for mine, other in zip(own, theirs, strict=True):  # the same until a byte comes that is no text by itself
        mine, other = mine.strip().split("\ufffd")[0], other.strip().split("\ufffd")[0]
        assert mine.startswith(other) or other.startswith(mine), (mine, other)
    assert sum(len(text.split("\ufffd")[0]) for text in theirs) > 60
    assert teacher.spent.requests == len(TEXTS)
    assert teacher.spent.unbilled == 0
    assert 0 < teacher.spent.billed_answer_tokens <= NEW * len(TEXTS)
    prompts = encode(load_tokenizer(checkpoint), TEXTS, 200).ids
    assert teacher.spent.billed_prompt_tokens == sum(map(len, prompts)), "its template is the student's own here"
    store = SignalStore(tmp_path)
    found = obtain(store, teacher, prompts)
    assert (found.bought_rows, found.effort.spent is not None) == (len(TEXTS), True)
    assert isinstance(store.get(found.keys[0].tobytes()), AnswerSignal)
    assert obtain(store, teacher, prompts).bought_rows == 0


def test_completions_and_draws_are_answered_too(served: Served, checkpoint: Path) -> None:
    plain = texts_of(teacher_at(served, checkpoint, endpoint="completions"), checkpoint)
    drawn = texts_of(teacher_at(served, checkpoint, drawn=Sampling(1.0, 5)), checkpoint)
    assert len(set(plain)) > 5
    assert plain != drawn


def test_a_wrong_key_and_a_name_that_is_not_served_are_told(served: Served, checkpoint: Path) -> None:
    with pytest.raises(InputError, match="another API key"):
        texts_of(teacher_at(served, checkpoint, api_key="wrong"), checkpoint)
    other = teacher_at(served, checkpoint)
    other.served_model = "small"
    with pytest.raises(InputError, match="'small' is none of what"):
        texts_of(other, checkpoint)


def test_the_server_tells_prometheus_all_that_dashboard_and_alerts_ask_of_it(served: Served, checkpoint: Path) -> None:
    texts_of(teacher_at(served, checkpoint), checkpoint)
    said = httpx.get(f"{served.url}/metrics").text  # it wants no key
    told = {sample.name for family in text_string_to_metric_families(said) for sample in family.samples}
    board = (GRAFANA / "redistill.json").read_text()
    alerts = yaml.safe_load((GRAFANA / "alerts.yaml").read_text())
    wanted = set(re.findall(r"sglang:\w+", board + json.dumps(alerts)))
    assert len(wanted) > 5
    assert wanted <= told
    assert not any(text in said for text in TEXTS)
    assert KEY not in said
