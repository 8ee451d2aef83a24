"""What asking cost: counts that add up, money where there is a price, and nothing that was not counted."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from distill.obtained import Obtained, nothing, together
from distill.teacher_settings import TeacherSettings
from distill.teachers.spent import Effort, Spent
from tasks import costs

EURO = TeacherSettings(price_prompt=3.0, price_answer=15.0, currency="EUR")


def obtained(rows: int, bought: int, seed: int, effort: Effort | None = None) -> Obtained:
    rng = np.random.default_rng(seed)
    paid = np.zeros(rows, np.bool_)
    paid[rng.choice(rows, bought, replace=False)] = True
    keys = rng.integers(0, 256, (rows, 32)).astype(np.uint8)
    tokens = rng.integers(1, 1000, (2, rows))
    return Obtained(keys, paid, tokens[0], tokens[1], effort or Effort())


def test_rows_tokens_and_money_of_slices_add_up_to_those_of_the_stage() -> None:
    whole = obtained(300, 120, 0)
    parts = {name: whole.part(np.arange(300) % 3 == number) for number, name in enumerate("abc")}
    cost = costs.report(whole, {**parts, "empty": nothing()}, EURO)["cost"]
    assert list(cost["slices"]) == ["a", "b", "c"]
    for origin in costs.ORIGINS:
        for name, value in cost[origin].items():
            assert sum(part[origin][name] for part in cost["slices"].values()) == pytest.approx(value, abs=2e-6)
    prompt, answer = (tokens[whole.bought].sum() for tokens in (whole.prompt_tokens, whole.answer_tokens))
    assert cost["bought"] == {
        "rows": 120,
        "prompt_tokens": prompt,
        "answer_tokens": answer,
        "money": pytest.approx((3 * prompt + 15 * answer) / 1e6, abs=1e-6),
    }


def test_purchases_together_are_their_sum_and_none_is_nothing() -> None:
    spent = Spent(requests=5, retries=1, waited_seconds=0.5)
    spent.answered(0.3)
    parts = [obtained(9, 4, 1, Effort(2.0, 10, 20, spent)), obtained(5, 5, 2, Effort(1.0, 1, 2, spent))]
    whole = together(parts)
    assert (whole.bought_rows, whole.reused_rows) == (9, 5)
    assert whole.bought_tokens == sum(part.bought_tokens for part in parts)
    assert whole.effort.seconds == 3.0
    assert whole.effort.spent is not None
    assert (whole.effort.spent.requests, sum(whole.effort.spent.latencies)) == (10, 2)
    assert spent.requests == 5, "what was added up is as it was"
    assert len(together([]).keys) == together([]).bought_tokens == 0


def test_a_teacher_in_this_process_has_no_requests_and_without_a_price_there_is_no_money() -> None:
    cost = costs.report(obtained(9, 4, 1, Effort(2.0, 30, 10)), {}, TeacherSettings())["cost"]
    assert cost["asking"] == {"seconds": 2.0, "prompt_tokens": 30, "answer_tokens": 10, "tokens_per_second": 20.0}
    assert set(cost["bought"]) == {"rows", "prompt_tokens", "answer_tokens"}
    assert "currency" not in cost
    told = costs.told(cost)
    assert "request" not in told
    assert "20 tokens/s" in told


@pytest.mark.parametrize(
    ("others", "money"), [({}, True), ({"currency": "USD"}, False), ({"price_prompt": 0, "price_answer": 0}, False)]
)
def test_money_of_stages_is_summed_where_it_is_known_of_all_in_one_currency(
    others: dict[str, Any], money: bool
) -> None:
    effort = Effort(2.0, 30, 10, Spent(requests=3, waited_seconds=0.25))
    settings = EURO, EURO.model_copy(update=others)
    stages = [costs.report(obtained(9, 4, n, effort), {}, each)["cost"] for n, each in enumerate(settings)]
    whole = costs.total(stages)
    assert whole["bought"]["rows"] == 8
    assert whole["asking"]["requests"] == 6
    assert whole["asking"]["tokens_per_second"] == 20.0
    assert ("currency" in whole, "money" in whole["bought"]) == (money, money)
    if money:
        assert whole["reused"]["money"] == pytest.approx(sum(stage["reused"]["money"] for stage in stages))
        assert "EUR paid" in costs.told(whole)


def test_what_the_endpoint_counts_itself_is_told_beside_it() -> None:
    spent = Spent(requests=2, billed_prompt_tokens=1000, billed_answer_tokens=100, unbilled=1)
    teacher = EURO.model_copy(update={"backend": "openai"})
    cost = costs.report(obtained(9, 2, 0, Effort(1.0, 5, 5, spent)), {}, teacher)["cost"]
    assert cost["asking"]["billed_money"] == pytest.approx(0.0045)
    assert cost["asking"]["unbilled_replies"] == 1
    assert "the endpoint counts 1000 tokens prompted, 100 generated" in costs.told(cost)
    sglang = replace(obtained(9, 2, 0), effort=Effort(1.0, 5, 5, Spent(requests=2)))
    asking = costs.report(sglang, {}, TeacherSettings(backend="sglang"))["cost"]["asking"]
    assert not [name for name in asking if "bill" in name]
