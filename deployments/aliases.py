"""Moves the aliases of a student: champion serves, challenger is the newest candidate, previous the way back.

MLflow has no transaction over several aliases, so each change here is a row of single writes whose order lets a
second call finish what a first one began; `champion`, the alias that serves, is written last. Callers hold the
registry's lock.
"""

from datetime import UTC, datetime
from typing import Any

from deployments.errors import Failure, InputError


def read(client: Any, student: str) -> dict[str, str]:
    """Alias -> version, from one answer of the registry."""
    found = client.get_registered_model(student).aliases
    return {alias: str(version) for alias, version in found.items()}  # numbers or text, depending on the store


def challenge(client: Any, student: str, version: str) -> None:
    """Points `challenger` at a version, unless it was promoted before or a newer one has the alias."""
    newest = int(read(client, student).get("challenger", 0))
    if newest < int(version) and "replaced" not in _tags(client, student, version):
        client.set_registered_model_alias(student, "challenger", version)


def promote(client: Any, student: str, version: str, expected: str | None) -> None:
    """Makes a version the champion if that is `expected` now (None: there is none); raises Failure otherwise."""
    aliases = read(client, student)
    champion = aliases.get("champion")
    if champion != version:
        if champion != expected:
            raise Failure(
                f"version {version} of {student!r} was to replace {_named(expected)}, but the registry has "
                f"{_named(champion)} now: nothing was changed; judge it against that one in a new retrain (--again)"
            )
        client.set_model_version_tag(student, version, "replaced", champion or "")
        _set_previous(client, student, aliases, champion)
        _serve(client, student, version)
    if aliases.get("challenger") == version:
        client.delete_registered_model_alias(student, "challenger")


def rollback(client: Any, student: str, reason: str) -> tuple[str, str]:
    """Makes the previous version the champion; returns (version taken out, version put back)."""
    aliases = read(client, student)
    champion = aliases.get("champion")
    if champion is None:
        raise InputError(f"nothing to roll back to: {student!r} has no champion yet")
    target = _target(champion, aliases.get("previous"), _tags(client, student, champion))
    if not target:
        raise InputError(
            f"nothing to roll back to: champion {champion} of {student!r} has no previous version, "
            "it is the first or was itself put back"
        )
    before = _tags(client, student, target).get("replaced")
    # The plan is written first and the champion last: until then a second call finds the same target.
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for key, value in (("rolling_back_to", target), ("rollback_reason", reason), ("rolled_back_at", now)):
        client.set_model_version_tag(student, champion, key, value)
    _set_previous(client, student, aliases, before if before and _exists(client, student, before) else None)
    _serve(client, student, target)
    return champion, target


def _target(champion: str, previous: str | None, tags: dict[str, str]) -> str | None:
    """The version that an unfinished rollback was going to, else `previous`.

    A promotion cut short after its first alias leaves `previous` at the champion itself; then it is the version
    which that one replaced.
    """
    planned = tags.get("rolling_back_to")
    if planned or previous != champion:
        return planned or previous
    return tags.get("replaced")


def _set_previous(client: Any, student: str, aliases: dict[str, str], version: str | None) -> None:
    if version is not None:
        client.set_registered_model_alias(student, "previous", version)
    elif "previous" in aliases:
        client.delete_registered_model_alias(student, "previous")


def _serve(client: Any, student: str, version: str) -> None:
    """Points `champion` at a version, once no rollback that was planned from it in the past is left on it."""
    if "rolling_back_to" in _tags(client, student, version):
        client.delete_model_version_tag(student, version, "rolling_back_to")
    client.set_registered_model_alias(student, "champion", version)


def _tags(client: Any, student: str, version: str) -> dict[str, str]:
    return dict(client.get_model_version(student, version).tags)


def _exists(client: Any, student: str, version: str) -> bool:
    where = f"name = '{student}' and version_number = {int(version)}"
    return bool(client.search_model_versions(where))


def _named(version: str | None) -> str:
    return "no champion" if version is None else f"champion {version}"
