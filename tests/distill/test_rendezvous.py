"""Machines meet at one address, all of them, for the same request; and the first cause of a failure is found."""

import json
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import DistNetworkError

from distill import launch
from distill.errors import Failure, InputError
from distill.machines import failures
from distill.machines.failures import Failed
from distill.machines.nodes import Nodes
from distill.machines.rendezvous import Rendezvous, interface_towards
from distill.settings import TrainingSettings

LIMIT = 60.0


@pytest.fixture
def endpoint() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        return f"127.0.0.2:{probe.getsockname()[1]}"


def met(*machines: Rendezvous) -> list[Any]:
    """What each machine's rendezvous returns or raises, all of them at once."""
    came: list[Any] = [None] * len(machines)

    def meet(at: int) -> None:
        try:
            came[at] = machines[at].next_rendezvous()
        except (Failure, InputError) as error:
            came[at] = error

    threads = [threading.Thread(target=meet, args=(at,)) for at in range(len(machines))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    return came


def test_machines_keep_their_numbers_and_share_a_store_at_the_given_address_only(endpoint: str) -> None:
    machines = [Rendezvous(Nodes(3, rank, endpoint, LIMIT), "same") for rank in (2, 1, 0)]
    came = met(*machines)
    assert [info.rank for info in came] == [2, 1, 0]
    assert len({machine.attempt for machine in machines}) == 1
    came[0].store.set("word", "heard")
    assert came[2].store.get("word") == b"heard"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", machines[0].port), timeout=5)


def test_a_machine_that_does_not_come_is_named(endpoint: str) -> None:
    (came,) = met(Rendezvous(Nodes(3, 0, endpoint, 0.5), "same"))
    assert f"machine 0 waited 0.5 s at {endpoint} for node rank 1, 2 of 3" in str(came)
    (came,) = met(Rendezvous(Nodes(3, 1, endpoint, 0.5), "same"))
    assert f"node rank 1 waited 0.5 s for machine 0 at {endpoint}" in str(came)


def test_machines_that_were_asked_otherwise_are_turned_away(endpoint: str) -> None:
    came = met(*(Rendezvous(Nodes(2, rank, endpoint, LIMIT), f"request {rank}") for rank in (0, 1)))
    assert [type(error) for error in came] == [InputError, InputError]
    assert "node rank 1 was given another request" in str(came[1])


def test_nobody_is_let_into_an_attempt_that_has_begun(endpoint: str) -> None:
    begun = [Rendezvous(Nodes(2, rank, endpoint, LIMIT), "same") for rank in (0, 1)]
    met(*begun)
    (late,) = met(Rendezvous(Nodes(2, 1, endpoint, 1.0), "same"))
    assert "busy with an attempt that began without this one" in str(late)


def test_an_address_that_is_not_of_this_machine_is_named() -> None:
    (came,) = met(Rendezvous(Nodes(2, 0, "192.0.2.1:29400", LIMIT), "same"))
    assert "rendezvous 192.0.2.1:29400 cannot be opened here" in str(came)
    with pytest.raises(InputError, match=r"'no\.such\.host\.invalid' cannot be reached"):
        interface_towards("no.such.host.invalid")


def test_the_loopback_is_found_by_any_of_its_addresses() -> None:
    assert interface_towards("127.0.0.2") == interface_towards("127.0.0.1")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"nodes": 2}, "needs rendezvous = HOST:PORT"),
        ({"nodes": 2, "node_rank": 2, "rendezvous": "a:1"}, "node_rank 2 is none of 2 nodes"),
        ({"nodes": 2, "rendezvous": "a"}, "rendezvous"),
    ],
)
def test_settings_of_machines_that_could_not_meet_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainingSettings.model_validate(settings)


def failed(rank: int, at: float, kind: failures.Kind) -> Failed:
    return Failed(rank, 0, 1, at, kind, f"reason of {rank}", "")


def test_the_first_cause_is_told_from_those_that_only_lost_the_others_or_were_ended(tmp_path: Path) -> None:
    assert failures.cause(tmp_path, 0) is None
    given = (failed(0, 1.0, "lost"), failed(3, 2.0, "ended"), failed(2, 3.0, "own"), failed(1, 2.0, "killed"))
    for one in given:
        failures.note(tmp_path, one)
    assert [one.rank for one in failures.noted(tmp_path)] == [1, 2, 3, 0]


def test_another_machine_gets_time_to_say_why(tmp_path: Path) -> None:
    failures.note(tmp_path, failed(0, 1.0, "lost"))
    threading.Timer(0.3, failures.note, (tmp_path, failed(1, 2.0, "own"))).start()
    began = time.monotonic()
    found = failures.cause(tmp_path, LIMIT)
    assert found is not None
    assert (found.rank, time.monotonic() - began < LIMIT / 2) == (1, True)


def test_what_torch_says_of_a_process_that_is_gone_is_no_cause() -> None:
    closed = "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4242"
    assert failures.kind_of(RuntimeError(closed)) == "lost"
    assert failures.kind_of(DistNetworkError("Failed to recv")) == "lost"
    assert failures.kind_of(Failure("step 3 was not taken")) == failures.kind_of(ValueError(closed)) == "own"


def test_a_failure_is_written_as_it_is_read(tmp_path: Path) -> None:
    one = failed(3, 1.5, "own")
    failures.note(tmp_path, one)
    assert failures.noted(tmp_path) == [one]
    assert json.loads((tmp_path / "rank-3.failed.json").read_text())["reason"] == "reason of 3"
    failures.note(tmp_path, replace(one, bad_input=True))
    assert failures.noted(tmp_path)[0].bad_input


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[rank 0] a\n", ["[rank 0] a"]),
        ("of the agent\n", ["of the agent"]),
        ("[rank 0] \n", ["[rank 0] "]),
        ("\n", [""]),
        ('[rank 0] redistill.step {"step": 1}[rank 0] \n', ['[rank 0] redistill.step {"step": 1}']),
        ("[rank 0] redistill.step {[rank 0] }\n", ["[rank 0] redistill.step {}"]),
        ("[rank 1] half[rank 0] whole[rank 1]  of it\n", ["[rank 1] half of it", "[rank 0] whole"]),
        ('redistill.error {"reason": "[rank 1] said"}\n', ['redistill.error {"reason": "[rank 1] said"}']),
        ("of the agent[rank 1] b\n", ["of the agent", "[rank 1] b"]),
    ],
)
def test_a_line_that_was_copied_before_its_end_is_put_together_again(line: str, said: list[str]) -> None:
    assert launch._apart(line) == said


def test_a_record_that_is_not_whole_is_shown_as_a_line() -> None:
    assert launch._record('redistill.step {"step": 1}', launch.PROGRESS) == {"step": 1}
    assert launch._record('redistill.step {"step": 1', launch.PROGRESS) is None
    assert launch._record("anything else", launch.PROGRESS) is None
