"""Moves the aliases of a student: champion serves, challenger is the newest candidate, previous the way back.

MLflow has no transaction over several aliases. So a change is written down as one move (deployments.journal), which
decides it, and then carried out by single writes, `champion`, the alias that serves, last. Each of them can be made
again: what was cut short is finished, or undone, by the next one that comes. Callers hold the registry's lock.
"""

from typing import Any

from deployments import journal
from deployments.errors import Failure, InputError
from deployments.journal import Move


def read(client: Any, student: str) -> dict[str, str]:
    """Alias -> version, from one answer of the registry."""
    found = client.get_registered_model(student).aliases
    return {alias: str(version) for alias, version in found.items()}  # numbers or text, depending on the store


def challenge(client: Any, student: str, version: str) -> None:
    """Points `challenger` at a version, unless it was promoted before or a newer one has the alias."""
    newest = int(read(client, student).get("challenger", 0))
    if newest < int(version) and "replaced" not in _tags(client, student, version):
        client.set_registered_model_alias(student, "challenger", version)


def promote(client: Any, student: str, moves: str, version: str, expected: str | None) -> None:
    """Makes a version the champion if that is `expected` now (None: there is none); raises Failure otherwise.

    Also when a rollback undid it before it served: without a lock (on a server) one can come between its writes.
    """
    number = _settled(client, student, moves)
    found = read(client, student)
    champion = found.get("champion")
    if champion == version:
        if found.get("challenger") == version:
            client.delete_registered_model_alias(student, "challenger")
        return
    if champion != expected:
        raise _taken(client, student, moves, version, expected, champion)
    move = Move(
        number=number,
        what="promotion",
        before=champion,
        to=version,
        previous=champion,
        previous_before=found.get("previous"),
        challenger_before=found.get("challenger"),
        replaced_before=_tags(client, student, version).get("replaced"),
    )
    if not journal.claim(client, moves, move):
        recover(client, student, moves)
        raise _taken(client, student, moves, version, expected, read(client, student).get("champion"))
    _carry_out(client, student, moves, move)
    if _undone(client, moves, move):
        raise _taken(client, student, moves, version, expected, read(client, student).get("champion"), undone=True)


def rollback(
    client: Any, student: str, moves: str, reason: str, expected: str | None, target: str | None
) -> tuple[str, str]:
    """Makes the previous version the champion; returns (version taken out, version put back).

    `expected`, `target`: only if this is the champion now, and only if this is put back, else Failure; None: whichever
    it is. An unfinished rollback is finished instead; an unfinished promotion that does not serve yet is undone first.
    """
    begun = journal.unfinished(client, moves)
    if begun and begun.what == "rollback" and expected in (None, begun.before):
        recover(client, student, moves)
        champion = read(client, student).get("champion")
        if champion != begun.to or _undone(client, moves, begun):  # set by hand, or its version was deleted meanwhile
            raise _gone(student, f"version {begun.to} was to be put back", champion)
        return str(begun.before), begun.to
    number = _settled(client, student, moves, undo=True)
    found = read(client, student)
    champion = found.get("champion")
    if champion is None:
        raise InputError(f"nothing to roll back to: {student!r} has no champion yet")
    if expected not in (None, champion):
        raise _gone(student, f"champion {expected} was to be taken out", champion)
    back = found.get("previous")
    if target not in (None, back):
        raise _gone(student, f"version {target} was to be put back", champion)
    if back is None or back == champion:
        raise InputError(
            f"nothing to roll back to: champion {champion} of {student!r} has no previous version, "
            "it is the first or was itself put back"
        )
    before = _tags(client, student, back).get("replaced")
    move = Move(
        number=number,
        what="rollback",
        before=champion,
        to=back,
        previous=before if before and exists(client, student, before) else None,
        previous_before=back,
        challenger_before=found.get("challenger"),
        replaced_before=before,
        reason=reason,
    )
    if not journal.claim(client, moves, move):
        recover(client, student, moves)
        raise _gone(student, f"champion {champion} was to be taken out", read(client, student).get("champion"))
    _carry_out(client, student, moves, move)
    if _undone(client, moves, move):  # its version was deleted meanwhile
        raise _gone(student, f"version {back} was to be put back", read(client, student).get("champion"))
    return champion, back


def recover(client: Any, student: str, moves: str, *, undo: bool = False) -> str:
    """Finishes the move that was cut short, and says so in a sentence; "" when there is none.

    It is undone instead when its version was deleted, or, with `undo`, when it is a promotion that does not serve
    yet. It is left where it was cut when the champion has been set by hand since.
    """
    move = journal.unfinished(client, moves)
    if move is None:
        return ""
    champion = read(client, student).get("champion")
    if champion not in (move.before, move.to):
        journal.decide(client, moves, move, "undone")  # unless it was kept before
        journal.finish(client, moves, move)
        return f"the {move}, was cut short, and {_named(champion)} was set by hand since: that was left as it is"
    takes_back = undo and move.what == "promotion" and champion == move.before
    if not move.undone and (takes_back or not exists(client, student, move.to)):
        journal.decide(client, moves, move, "undone")
    _carry_out(client, student, moves, move)
    done = "undone" if _undone(client, moves, move) else "completed"
    return f"the {move}, was cut short: it was {done}, the registry has {_named(read(client, student).get('champion'))}"


def exists(client: Any, student: str, version: str) -> bool:
    """Says whether the registry still has a version."""
    return bool(client.search_model_versions(f"name = '{student}' and version_number = {int(version)}"))


def _carry_out(client: Any, student: str, moves: str, move: Move) -> None:
    """Makes the writes of a move that was written down; whoever made later ones meanwhile has the last word."""
    while True:
        latest = journal.read(client, moves)[-1]
        if latest.undone:
            _put_back(client, student, latest)
        else:
            _write(client, student, latest)
        # Without a lock (on a server) a slow process may have overwritten what came after it: then again.
        again = journal.read(client, moves)[-1]
        if (again.number, again.undone) != (latest.number, latest.undone):
            continue
        if latest.undone or journal.decide(client, moves, latest, "kept"):
            break  # else somebody decided in this very moment that it is undone
    journal.finish(client, moves, latest)


def _write(client: Any, student: str, move: Move) -> None:
    if move.what == "promotion":
        client.set_model_version_tag(student, move.to, "replaced", move.before or "")
    else:
        client.set_model_version_tag(student, move.before, "rolled_back_at", move.at)
        client.set_model_version_tag(student, move.before, "rollback_reason", move.reason)
    _point(client, student, "previous", move.previous)
    if read(client, student).get("challenger") == move.to:
        _point(client, student, "challenger", None)
    client.set_registered_model_alias(student, "champion", move.to)


def _put_back(client: Any, student: str, move: Move) -> None:
    """The other way round: what serves first, then what leads back to it."""
    _point(client, student, "champion", move.before)
    back = move.previous_before
    _point(client, student, "previous", back if back and exists(client, student, back) else None)
    if not exists(client, student, move.to):
        return
    if move.replaced_before is not None:
        client.set_model_version_tag(student, move.to, "replaced", move.replaced_before)
    elif "replaced" in _tags(client, student, move.to):
        client.delete_model_version_tag(student, move.to, "replaced")
    if move.challenger_before == move.to:
        challenge(client, student, move.to)


def _point(client: Any, student: str, alias: str, version: str | None) -> None:
    if version is not None:
        client.set_registered_model_alias(student, alias, version)
    elif alias in read(client, student):
        client.delete_registered_model_alias(student, alias)


def _settled(client: Any, student: str, moves: str, *, undo: bool = False) -> int:
    """Finishes what is unfinished; returns the next move's number.

    It is read before the aliases are: a move that comes between takes the number, and the claim fails.
    """
    while True:
        recover(client, student, moves, undo=undo)
        found = journal.read(client, moves)
        if not found or found[-1].done:
            return len(found) + 1


def _undone(client: Any, moves: str, move: Move) -> bool:
    return journal.read(client, moves)[move.number - 1].undone


def _taken(
    client: Any,
    student: str,
    moves: str,
    version: str,
    expected: str | None,
    champion: str | None,
    *,
    undone: bool = False,
) -> Failure:
    """What the one that lost is told: who won, when, and what to do."""
    won = [move for move in journal.read(client, moves) if move.to == champion and not move.undone]
    retrain = _tags(client, student, champion).get("retrain_id") if champion else None
    how = f" (by {won[-1].what} at {won[-1].at}{f', retrain {retrain}' if retrain else ''})" if won else ""
    meanwhile = "that was undone meanwhile, and " if undone else ""
    return Failure(
        f"version {version} of {student!r} was to replace {_named(expected)}, but {meanwhile}the registry has "
        f"{_named(champion)} now{how}: nothing was changed; judge it against that one in a new retrain (--again)"
    )


def _gone(student: str, wanted: str, champion: str | None) -> Failure:
    return Failure(
        f"{wanted} by a rollback of {student!r}, but the registry has {_named(champion)} now, as somebody else was "
        "faster: nothing was changed; look at `python -m deployments.registry list`"
    )


def _tags(client: Any, student: str, version: str) -> dict[str, str]:
    return dict(client.get_model_version(student, version).tags)


def _named(version: str | None) -> str:
    return "no champion" if version is None else f"champion {version}"
