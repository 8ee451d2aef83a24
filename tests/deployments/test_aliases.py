import shutil
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from deployments import journal
from deployments.errors import Failure, InputError
from deployments.journal import Move
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
        with pytest.raises(Failure, match=rf"replace {named}.*has champion 2 now \(by promotion at 20.*\(--again\)"):
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
        assert registry.recover() == ""
        assert registry.rollback("test") == ("3", "2")
    assert fail_at == 8  # the move, tag, previous, challenger, champion, that it is kept, its end; no eighth


def test_the_next_start_completes_a_promotion_cut_anywhere_once_it_was_written_down(
    uri: str, served: Served, cut: Cutter, was_cut: Callable[..., bool]
) -> None:
    for fail_at in count(1):
        registry = anew(uri, fail_at)
        promoted(registry, 2)
        candidate(registry)
        if not was_cut(cut(registry, fail_at).promote, "3", "2"):
            break
        told = registry.recover()
        if fail_at == 1:
            assert (told, served(registry)) == ("", ("2", "1", "3"))
        else:
            assert told.startswith("the promotion of version 3, in place of version 2, of 20")
            assert told.endswith("was cut short: it was completed, the registry has champion 3")
            assert served(registry) == ("3", "2", None)
        assert registry.recover() == ""
    assert fail_at == 8


def test_a_rollback_cut_anywhere_keeps_a_champion_and_goes_back_only_once(
    uri: str, served: Served, cut: Cutter, was_cut: Callable[..., bool]
) -> None:
    for fail_at in count(1):
        registry = anew(uri, fail_at)
        promoted(registry, 3)
        if not was_cut(cut(registry, fail_at).rollback, "test", "3"):
            break
        assert served(registry)[0] in ("2", "3")
        target = registry.rolls_back_to()
        assert target is not None
        assert target.version == "2"
        assert registry.rollback("test", "3") == ("3", "2")
        assert served(registry) == ("2", "1", None)
    assert fail_at == 8  # the move, two tags, previous, champion, that it is kept, its end; no eighth


@pytest.mark.parametrize("fail_at", [2, 3, 4, 5])
def test_a_rollback_after_half_a_promotion_undoes_it_and_takes_out_what_serves(
    fail_at: int, registry: Registry, served: Served, cut: Cutter
) -> None:
    promoted(registry, 2)
    candidate(registry)
    with pytest.raises(Failure, match="cut before"):
        cut(registry, fail_at).promote("3", "2")
    assert served(registry)[0] == "2"
    target = registry.rolls_back_to()
    assert target is not None
    assert target.version == "1"
    assert registry.rollback("test") == ("2", "1")
    assert served(registry) == ("1", None, "3")
    assert "replaced" not in registry.get("3").tags
    registry.promote("3", "1")  # it was undone, not spent
    assert served(registry) == ("3", "1", None)


def test_an_undoing_cut_anywhere_is_completed(
    uri: str, served: Served, cut: Cutter, was_cut: Callable[..., bool]
) -> None:
    for fail_at in count(1):
        registry = anew(uri, fail_at)
        promoted(registry, 2)
        candidate(registry)
        assert was_cut(cut(registry, 5).promote, "3", "2")
        if not was_cut(cut(registry, fail_at).rollback, "test"):
            break
        if fail_at > 1:  # that it is undone is written down
            registry.recover()
        if served(registry)[0] == "2":
            assert registry.rollback("test", "2") == ("2", "1")
        assert served(registry) == ("1", None, "3")
    assert fail_at == 14


def test_a_promotion_whose_version_was_deleted_is_undone(registry: Registry, served: Served, cut: Cutter) -> None:
    promoted(registry, 2)
    candidate(registry)
    with pytest.raises(Failure, match="cut before"):
        cut(registry, 5).promote("3", "2")
    registry.client.delete_model_version("student", "3")
    assert "it was undone, the registry has champion 2" in registry.recover()
    assert served(registry) == ("2", "1", None)


def test_a_champion_set_by_hand_after_the_cut_is_left(registry: Registry, served: Served, cut: Cutter) -> None:
    promoted(registry, 2)
    candidate(registry)
    with pytest.raises(Failure, match="cut before"):
        cut(registry, 3).promote("3", "2")
    registry.client.set_registered_model_alias("student", "champion", "1")
    assert "champion 1 was set by hand since" in registry.recover()
    assert served(registry)[0] == "1"
    assert registry.recover() == ""


@pytest.mark.parametrize("fail_at", [2, 7])  # nothing of it is carried out; all but its end is written down
def test_a_rollback_that_a_champion_set_by_hand_overtook_says_that_it_changed_nothing(
    fail_at: int, registry: Registry, served: Served, cut: Cutter
) -> None:
    promoted(registry, 3)
    with pytest.raises(Failure, match="cut before"):
        cut(registry, fail_at).rollback("worse")
    registry.client.set_registered_model_alias("student", "champion", "1")
    with pytest.raises(Failure, match=r"version 2 was to be put back .*but the registry has champion 1 now"):
        registry.rollback("worse")
    assert served(registry)[0] == "1"
    assert registry.moves()[-1].undone == (fail_at == 2), "what was carried out has served"
    assert registry.recover() == ""


def test_a_rollback_of_another_champion_than_expected_changes_nothing(registry: Registry, served: Served) -> None:
    promoted(registry, 3)
    with pytest.raises(Failure, match=r"champion 2 was to be taken out .*but the registry has champion 3 now"):
        registry.rollback("worse", expected="2")
    with pytest.raises(Failure, match=r"version 1 was to be put back .*but the registry has champion 3 now"):
        registry.rollback("worse", target="1")
    assert served(registry) == ("3", "2", None)


def test_what_a_slow_process_overwrites_is_written_again(registry: Registry, served: Served) -> None:
    """Without a lock, as on a server: a promotion is held up at its last alias while another one is made."""
    promoted(registry, 2)
    candidate(registry)
    candidate(registry)
    held_up = replace(registry, client=_HeldUp(registry.client, lambda: registry.promote("4", "3")))
    with suppress(Failure):
        replace(held_up, lock=nullcontext).promote("3", "2")
    assert served(registry)[:2] == ("4", "3")
    assert registry.recover() == ""


@pytest.mark.parametrize(("versions", "now", "previous"), [(1, "1", None), (2, "1", None), (3, "2", "1")])
def test_a_promotion_that_a_rollback_undid_before_it_served_says_so(
    versions: int, now: str, previous: str | None, registry: Registry, served: Served
) -> None:
    """Without a lock, as on a server; of the first champion there is nothing to roll back to but the undoing."""
    promoted(registry, versions)
    version = candidate(registry)

    def undo() -> None:
        with suppress(InputError):
            registry.rollback("worse")

    held_up = replace(registry, client=_HeldUp(registry.client, undo), lock=nullcontext)
    said = rf"version {version} of 'student' .*, but that was undone meanwhile, and the registry has champion {now} now"
    with pytest.raises(Failure, match=said):
        held_up.promote(version, str(versions))
    assert served(registry) == (now, previous, version)
    assert registry.recover() == ""


def test_a_rollback_that_was_undone_as_its_version_was_deleted_says_so(registry: Registry, cut: Cutter) -> None:
    promoted(registry, 2)
    with pytest.raises(Failure, match="cut before"):
        cut(registry, 2).rollback("worse")
    registry.client.delete_model_version("student", "1")
    with pytest.raises(Failure, match=r"version 1 was to be put back .*but the registry has champion 2 now"):
        registry.rollback("worse")


class _HeldUp:
    """An MLflow client that does something else right before it first points `champion` at a version."""

    def __init__(self, client: Any, meanwhile: Callable[[], None]) -> None:
        self._client, self._meanwhile = client, [meanwhile]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def set_registered_model_alias(self, student: str, alias: str, version: str) -> None:
        if alias == "champion" and self._meanwhile:
            self._meanwhile.pop()()
        self._client.set_registered_model_alias(student, alias, version)


def test_the_moves_tell_who_served_when_and_why(registry: Registry) -> None:
    promoted(registry, 2)
    registry.rollback("worse answers")
    told = [(move.number, move.what, move.before, move.to, move.reason, move.done) for move in registry.moves()]
    assert told == [
        (1, "promotion", None, "1", "", True),
        (2, "promotion", "1", "2", "", True),
        (3, "rollback", "2", "1", "worse answers", True),
    ]
    assert all(datetime.fromisoformat(move.at).tzinfo is not None for move in registry.moves())


@pytest.mark.parametrize("what", ["promotion", "rollback", "start"])
def test_while_the_record_of_moves_is_deleted_nothing_moves_and_the_command_that_restores_it_is_told(
    what: str, registry: Registry, served: Served
) -> None:
    promoted(registry, 2)
    candidate(registry)
    calls: dict[str, Callable[[], object]] = {
        "promotion": lambda: registry.promote("3", "2"),
        "rollback": lambda: registry.rollback("worse"),
        "start": registry.recover,
    }
    registry.client.delete_run(registry.promotions)
    with pytest.raises(Failure, match=f"was deleted: .*mlflow runs restore --run-id {registry.promotions}`"):
        calls[what]()
    assert served(registry) == ("2", "1", "3")
    registry.client.restore_run(registry.promotions)
    calls[what]()


def test_a_record_of_moves_that_is_gone_for_good_is_begun_anew_when_its_tag_is_deleted(
    uri: str, registry: Registry, served: Served
) -> None:
    promoted(registry, 2)
    registry.client.delete_run(registry.promotions)
    registry.client._tracking_client.store._hard_delete_run(registry.promotions)  # as `mlflow gc` does
    with pytest.raises(Failure, match=r"is gone for good: .*delete the tag 'promotions' of the registered model"):
        registry.rollback("worse")
    registry.client.delete_registered_model_tag("student", journal.TAG)
    anew = connect(uri, "", "student", 10)
    assert anew.rollback("worse") == ("2", "1")
    assert [move.number for move in anew.moves()] == [1]


def test_rollbacks_walk_back_to_the_first_version_and_then_say_so(registry: Registry, served: Served) -> None:
    promoted(registry, 3)
    assert registry.rollback("worse answers") == ("3", "2")
    tags = registry.get("3").tags
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


@pytest.mark.parametrize("reason", ["R\udcfcckfall", "a\0b"])
def test_a_reason_that_cannot_be_stored_is_refused_before_anything_is_written_down(
    reason: str, registry: Registry, served: Served
) -> None:
    promoted(registry, 2)
    with pytest.raises(InputError, match=r"the reason (holds a null byte|is not UTF-8)"):
        registry.rollback(reason)
    assert len(registry.moves()) == 2
    assert registry.rollback("plain") == ("2", "1")


@pytest.mark.parametrize("letter", ["\U0001f600", "\x01", '"', "ü"])
def test_the_longest_reason_is_kept_whole_however_its_letters_are_written(letter: str, registry: Registry) -> None:
    promoted(registry, 2)
    registry.rollback(letter * 500)
    assert registry.moves()[-1].reason == registry.get("2").tags["rollback_reason"] == letter * 500


def test_of_two_moves_with_one_number_the_store_keeps_the_first_and_tells_the_other(registry: Registry) -> None:
    """The one compare-and-set that MLflow has, without any lock."""
    promoted(registry, 1)
    contenders = [candidate(registry), candidate(registry)]
    first, second = (Move(2, "promotion", "1", version, "1", None, None, None) for version in contenders)
    assert journal.claim(registry.client, registry.promotions, first)
    assert journal.claim(registry.client, registry.promotions, first)  # asked again, as MLflow's client does
    assert not journal.claim(registry.client, registry.promotions, second)
    assert [move.to for move in registry.moves()] == ["1", "2"]
    with pytest.raises(Failure, match=r"version 3 of 'student' was to replace champion 1.*has champion 2 now"):
        registry.promote("3", "1")
