"""Who is about to buy which signals: two jobs that want the same ones at the same time buy them once.

    ROOT/claim-<machine>-<process>-<random>
                            written by a living job, again and again: when (float64, seconds since 1970), keys

Whoever claims writes first and looks afterwards, and leaves alone what others claim too: of two that write at the same
time at least one sees the other, so that no signal has two claims, wherever the store lies. Both may then have let go;
who finds nothing to do waits a random while and tries again. A claim that was not renewed for `LEASE` seconds belongs
to a dead job, and so does at once one of a process that is gone from this very machine. The clocks of several machines
have to agree to much less than that.
"""

import hashlib
import logging
import os
import struct
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from distill.errors import Failure
from distill.store.places import Place

LEASE = 60.0  # seconds
_WHEN = struct.Struct("<d")
_log = logging.getLogger(__name__)


@contextmanager
def claimed(place: Place, keys: NDArray[np.uint8], lease: float = LEASE) -> Iterator[NDArray[np.bool_]]:
    """Claim keys (N, 32) while the block runs; yields which of them are ours, (N,).

    Raises Failure where nothing can be written.
    """
    name, ended = f"claim-{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}", threading.Event()
    try:
        own = ~_among(keys, _of_others(place, name, lease))
        _write(place, name, keys[own])
        if (both := _among(keys, _of_others(place, name, lease)) & own).any():
            own &= ~both
            _write(place, name, keys[own])
    except OSError as error:
        _drop(place, name)
        raise Failure(
            f"signal store {place.root!r} cannot be written ({error}): make room or set teacher.signals to another "
            "folder, and start again; what was stored before is kept"
        ) from error
    renewing = threading.Thread(target=_renew, args=(place, name, keys[own], lease, ended), daemon=True)
    renewing.start()
    try:
        yield own
    finally:
        ended.set()
        renewing.join()
        _drop(place, name)


def _of_others(place: Place, name: str, lease: float) -> NDArray[np.bytes_]:
    """Return all keys that other living jobs claim; claims of the dead are removed."""
    found = []
    for other, content in place.claims().items():
        if other == name:
            continue
        age = time.time() - _WHEN.unpack_from(content)[0] if len(content) >= _WHEN.size else lease
        if age > 10 * lease or _is_gone(other):  # so long that no clock can be blamed
            place.drop_claim(other)
        elif age < lease:
            found.append(np.frombuffer(content[_WHEN.size :], "S32"))
    return np.concatenate(found) if found else np.empty(0, "S32")


def _is_gone(name: str) -> bool:
    """Return whether a claim's process ran on this machine and does no more."""
    machine, process = name.split("-")[1:3]
    return machine == _machine() != "" and not psutil.pid_exists(int(process))


@cache
def _machine() -> str:
    """Return what processes have in common that see each other by number; nothing where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return ""
    return hashlib.sha256(f"{boot}{namespace}".encode()).hexdigest()[:12]


def _renew(place: Place, name: str, keys: NDArray[np.uint8], lease: float, ended: threading.Event) -> None:
    while not ended.wait(lease / 4):
        try:
            _write(place, name, keys)
        except Exception as error:  # whatever it is: a thread that ends renews nothing any more
            _log.warning("the claim %s could not be renewed (%r): others may buy the same signals", name, error)


def _drop(place: Place, name: str) -> None:
    try:
        place.drop_claim(name)
    except OSError as error:  # it is void after a while by itself, and what was bought is stored
        _log.warning("the claim %s could not be removed (%s): others wait until it is void", name, error)


def _write(place: Place, name: str, keys: NDArray[np.uint8]) -> None:
    place.write_claim(name, _WHEN.pack(time.time()) + keys.tobytes())


def _among(keys: NDArray[np.uint8], others: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    return np.isin(np.ascontiguousarray(keys).reshape(-1).view("S32"), others)
