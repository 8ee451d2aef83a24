import shutil
import threading
from collections.abc import Callable
from datetime import datetime
from itertools import count
from pathlib import Path

import pytest

from deployments.errors import Failure, InputError
from deployments.registry import Registry, connect

Cutter = Callable[[Registry, int], Registry]
Served = Callable[[Registry], tuple[str | None, str | None, str | None]]


def candidate(registry: Registry) -> str:
    """A new challenger without a run and without files: enough to move aliases."""
    version = str(registry.client.create_model_version("student", "nowhere").version)
    registry.client.set_registered_model_alias("student", "challenger", version)
    return version


def promoted(registry: Registry, versions: int) -> None:
    for number in range(1, versions + 1):
        registry.promote(candidate(registry), None if number == 1 else str(number - 1))


def anew(uri: str, number: int) -> Registry:
    """A registry in a copy of the database."""
    path = Path(uri.removeprefix("sqlite:///"))
    shutil.copy(path, path.with_name(f"{number}.db"))
    return connect(f"sqlite:///{path.with_name(f'{number}.db')}", "", "student", 10)


def test_promotions_move_champion_previous_and_challenger(registry: Registry, served: Served) -> None:
    promoted(registry, 1)
    assert served(registry) == ("1", None, None)
    candidate(registry)
    assert served(registry) == ("1", None, "2")
    registry.promote("2", "1")
    assert served(registry) == ("2", "1", None)
    registry.promote("2", "1")  # done already
    assert served(registry) == ("2", "1", None)


def test_a_promotion_against_another_champion_than_expected_changes_nothing(registry: Registry, served: Served) -> None:
    promoted(registry, 2)
    candidate(registry)
    for expected, named in (("1", "champion 1"), (None, "no champion")):
        with pytest.raises(Failure, match=f"replace {named}.*has champion 2 now"):
            registry.promote("3", expected)
    assert served(registry) == ("2", "1", "3")


def test_a_promotion_cut_anywhere_keeps_a_champion_and_is_completed(
    uri: str, served: Served, cut: Cutter, was_cut: Callable[..., bool]
) -> None:
    for fail_at in count(1):
        registry = anew(uri, fail_at)
        promoted(registry, 2)
        candidate(registry)
        if not was_cut(cut(registry, fail_at).promote, "3", "2"):
            break
        assert served(registry)[0] in ("2", "3")
        registry.promote("3", "2")
        assert served(registry) == ("3", "2", None)
        assert registry.rollback("test") == ("3", "2")
    assert fail_at == 5  # tag, previous, champion, challenger; the fifth is not reached


def test_a_rollback_cut_anywhere_keeps_a_champion_and_goes_back_only_once(
    uri: str, served: Served, cut: Cutter, was_cut: Callable[..., bool]
) -> None:
    for fail_at in count(1):
        registry = anew(uri, fail_at)
        promoted(registry, 3)
        if not was_cut(cut(registry, fail_at).rollback, "test"):
            break
        assert served(registry)[0] == "3"
        assert registry.rollback("test") == ("3", "2")
        assert served(registry) == ("2", "1", None)
    assert fail_at == 6  # three tags, previous, champion; the sixth is not reached


def test_a_rollback_after_half_a_promotion_goes_to_what_served_before(
    registry: Registry, served: Served, cut: Cutter
) -> None:
    promoted(registry, 2)
    candidate(registry)
    with pytest.raises(Failure, match="cut before"):
        cut(registry, 3).promote("3", "2")
    assert served(registry) == ("2", "2", "3")
    assert registry.rollback("test") == ("2", "1")
    assert served(registry) == ("1", None, "3")


def test_rollbacks_walk_back_to_the_first_version_and_then_say_so(registry: Registry, served: Served) -> None:
    promoted(registry, 3)
    assert registry.rollback("worse answers") == ("3", "2")
    tags = registry._version("3").tags
    assert tags["rollback_reason"] == "worse answers"
    assert datetime.fromisoformat(tags["rolled_back_at"]).tzinfo is not None
    assert registry.rollback("still") == ("2", "1")
    assert served(registry) == ("1", None, None)
    with pytest.raises(InputError, match="nothing to roll back to: champion 1 of 'student' has no previous"):
        registry.rollback("again")
    assert served(registry) == ("1", None, None)


def test_a_version_that_was_rolled_back_can_serve_again_and_be_rolled_back_again(
    registry: Registry, served: Served
) -> None:
    promoted(registry, 3)
    registry.rollback("worse")
    candidate(registry)
    registry.promote("4", "2")
    registry.promote("3", "4")
    assert served(registry) == ("3", "4", None)
    assert registry.rollback("worse again") == ("3", "4")  # not to 2, where it went the first time
    assert served(registry) == ("4", "2", None)


def test_a_rollback_does_without_a_deleted_older_version(registry: Registry, served: Served) -> None:
    promoted(registry, 3)
    registry.client.delete_model_version("student", "1")
    assert registry.rollback("worse") == ("3", "2")
    assert served(registry) == ("2", None, None)


def test_a_rollback_without_a_champion_says_so(registry: Registry) -> None:
    with pytest.raises(InputError, match="nothing to roll back to: 'student' has no champion"):
        registry.rollback("worse")


def test_of_promotions_at_once_one_wins(uri: str, served: Served) -> None:
    first = connect(uri, "", "student", 10)
    promoted(first, 1)
    contenders = [candidate(first) for _ in range(4)]
    refused: list[str] = []

    def contend(version: str) -> None:
        try:
            first.promote(version, "1")
        except Failure:
            refused.append(version)

    threads = [threading.Thread(target=contend, args=(version,)) for version in contenders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    champion, previous, _ = served(first)
    assert sorted([*refused, champion or ""]) == contenders
    assert previous == "1"
