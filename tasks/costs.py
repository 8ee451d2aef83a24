"""What asking the teacher cost: rows and tokens of each slice, bought or reused, the time it took, and money."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from prefect.artifacts import create_table_artifact

from distill.obtained import Obtained
from distill.teacher_settings import TeacherSettings
from distill.teachers.spent import Effort

MILLION = 1_000_000  # tokens that a price is of
ORIGINS = ("bought", "reused")  # money that was paid, and money that was saved


def report(obtained: Obtained, slices: Mapping[str, Obtained], teacher: TeacherSettings) -> dict[str, Any]:
    """Return the counts of a stage's result: rows and tokens, and under `cost` all that is known.

    slices: parts of what was obtained, each row in one of them; those without rows are left out.
    """
    return {
        "reused_rows": obtained.reused_rows,
        "bought_rows": obtained.bought_rows,
        "reused_tokens": obtained.reused_tokens,
        "bought_tokens": obtained.bought_tokens,
        "cost": {
            **_parts(obtained, teacher),
            "slices": {name: _parts(part, teacher) for name, part in slices.items() if len(part.keys)},
            "asking": _asking(obtained.effort, teacher),
            **({"currency": teacher.currency} if priced(teacher) else {}),
        },
    }


def of_rounds(done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what `report` returns, of rounds that each have a report among what they say of themselves."""
    counts = ("reused_rows", "bought_rows", "reused_tokens", "bought_tokens")
    slices = {f"round {each['round']}": {origin: each["cost"][origin] for origin in ORIGINS} for each in done}
    return {
        **{name: sum(each[name] for each in done) for name in counts},
        "cost": {**total([each["cost"] for each in done]), "slices": slices},
    }


def total(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what several stages cost together, without their slices; of `report`, which has them under `cost`.

    There is no sum of money where it is not in one currency, or not known of all.
    """
    found: dict[str, Any] = {origin: _summed([cost[origin] for cost in costs]) for origin in ORIGINS}
    found["asking"] = _with_speed(_summed([cost["asking"] for cost in costs]))
    currencies = {cost.get("currency") for cost in costs}
    if len(currencies) == 1 and None not in currencies:
        return {**found, "currency": currencies.pop()}
    for part in found.values():
        part.pop("money", None)
        part.pop("billed_money", None)
    return found


def rows(slices: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a table for people: a row for each slice of a `report`."""
    return [
        {
            "slice": name,
            **{f"{origin} {key.replace('_', ' ')}": part[origin][key] for origin in ORIGINS for key in part[origin]},
        }
        for name, part in slices.items()
    ]


def show(stage: str, result: Mapping[str, Any]) -> None:
    """Show in Prefect's interface what a stage cost; nothing for one that needed no signals, or did not say."""
    if "cost" in result and (table := rows(result["cost"]["slices"])):  # an earlier version did not say
        create_table_artifact(table, key=f"teacher-cost-{stage}", description=f"Teacher: {told(result['cost'])}")


def told(cost: Mapping[str, Any]) -> str:
    """Return a cost in words; of `report` or `total`."""
    bought, reused = cost["bought"], cost["reused"]
    parts = [
        f"{_tokens(bought)} tokens bought ({bought['prompt_tokens']} prompted, {bought['answer_tokens']} generated), "
        f"{_tokens(reused)} reused"
    ]
    if "currency" in cost:
        parts.append(f"{bought['money']:.4g} {cost['currency']} paid, {reused['money']:.4g} saved")
    asking = cost["asking"]
    if "tokens_per_second" in asking:
        parts.append(f"{asking['tokens_per_second']:.0f} tokens/s")
    if asking.get("requests"):
        waited = f", {asking['waited_seconds']:.1f} s waiting" if asking["waited_seconds"] >= 0.05 else ""
        parts.append(f"{asking['requests']} requests, {asking['retries']} retries{waited}")
    if asking.get("billed_prompt_tokens"):
        parts.append(
            f"the endpoint counts {asking['billed_prompt_tokens']} tokens prompted, "
            f"{asking['billed_answer_tokens']} generated"
        )
    return "; ".join(parts)


def numbers(cost: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a cost by names with slashes, without its slices."""
    found = {f"{origin}_{name}": cost[origin][name] for origin in ORIGINS for name in cost[origin]}
    return {**found, **{f"asking_{name}": value for name, value in cost["asking"].items()}}


def _summed(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            found[name] = found.get(name, 0) + value
    found.pop("tokens_per_second", None)
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in found.items()}


def _parts(obtained: Obtained, teacher: TeacherSettings) -> dict[str, dict[str, Any]]:
    masks = {"bought": obtained.bought, "reused": ~obtained.bought}
    return {origin: _counts(obtained.part(mask), teacher) for origin, mask in masks.items()}


def _counts(part: Obtained, teacher: TeacherSettings) -> dict[str, Any]:
    prompt, answer = int(part.prompt_tokens.sum(dtype=np.int64)), int(part.answer_tokens.sum(dtype=np.int64))
    counts: dict[str, Any] = {"rows": len(part.keys), "prompt_tokens": prompt, "answer_tokens": answer}
    return counts | ({"money": money(prompt, answer, teacher)} if priced(teacher) else {})


def _asking(effort: Effort, teacher: TeacherSettings) -> dict[str, Any]:
    """Return what it took to ask; what a teacher in this process has none of is left out."""
    found: dict[str, Any] = {
        "seconds": round(effort.seconds, 3),
        "prompt_tokens": effort.prompt_tokens,
        "answer_tokens": effort.answer_tokens,
    }
    if spent := effort.spent:
        found |= {
            "requests": spent.requests,
            "retries": spent.retries,
            "rests": spent.rests,
            "waited_seconds": round(spent.waited_seconds, 3),
        }
        if teacher.backend == "openai":
            found |= {
                "billed_prompt_tokens": spent.billed_prompt_tokens,
                "billed_answer_tokens": spent.billed_answer_tokens,
                "unbilled_replies": spent.unbilled,
            }
            if priced(teacher):
                billed = money(spent.billed_prompt_tokens, spent.billed_answer_tokens, teacher)
                found["billed_money"] = billed
    return _with_speed(found)


def _with_speed(asking: dict[str, Any]) -> dict[str, Any]:
    if not asking.get("seconds"):
        return asking
    tokens = asking["prompt_tokens"] + asking["answer_tokens"]
    return {**asking, "tokens_per_second": round(tokens / asking["seconds"], 1)}


def priced(teacher: TeacherSettings) -> bool:
    """Return whether the settings have a price."""
    return bool(teacher.price_prompt or teacher.price_answer)


def money(prompt_tokens: int, answer_tokens: int, teacher: TeacherSettings) -> float:
    """Return what so many tokens cost at the prices of the settings."""
    return round((prompt_tokens * teacher.price_prompt + answer_tokens * teacher.price_answer) / MILLION, 6)


def _tokens(part: Mapping[str, Any]) -> int:
    return int(part["prompt_tokens"] + part["answer_tokens"])
