"""Where the agents of a run meet: a store at an address of machine 0, and only there.

torch's own rendezvous listens on every interface, and gives ranks by host name. This one binds the address it was given
(the loopback where one machine trains alone), keeps the machines' numbers, and begins every attempt anew: machine 0
invents its name, and whoever was not counted in is turned away, so nothing of an attempt that failed is ever read.
"""

import json
import socket
import time
import uuid
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import DistNetworkError, DistStoreError
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from distill.errors import Failure, InputError
from distill.machines.nodes import Nodes

_PAUSE = 0.2  # seconds between looks


class Rendezvous(RendezvousHandler):
    """One attempt of one machine. `asked` (a digest of the request) has to be the same on all of them."""

    def __init__(self, nodes: Nodes, asked: str) -> None:
        self.nodes, self.asked, self.me = nodes, asked, uuid.uuid4().hex
        self.host, self.port = nodes.endpoint()
        self.attempt = ""
        self.deadline = 0.0
        self._store: TCPStore | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for all machines; Failure when they do not come in time, InputError when they were asked otherwise."""
        self.deadline = time.monotonic() + self.nodes.seconds
        if self.nodes.rank == 0:
            self._store = self._host()
            self._admit(self._store)
        else:
            self._store = self._join()
        store = PrefixStore(self.attempt, self._store)
        where = RendezvousStoreInfo(self.host, self.port)
        return RendezvousInfo(store, self.nodes.rank, self.nodes.count, where)

    # --- machine 0 ---

    def _host(self) -> TCPStore:
        try:
            family, _, _, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
            listening = socket.socket(family, socket.SOCK_STREAM)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(1024)
        except OSError as error:
            raise InputError(
                f"rendezvous {self.host}:{self.port} cannot be opened here ({error}): machine 0 needs an address "
                "of its own and a free port"
            ) from error
        self.port = listening.getsockname()[1]
        self.attempt = f"{time.strftime('%Y%m%dT%H%M%S')}-{self.me[:8]}"
        return TCPStore(
            self.host, self.port, None, True, _seconds(300), wait_for_workers=False, master_listen_fd=listening.detach()
        )

    def _admit(self, store: TCPStore) -> None:
        store.set("attempt", self.attempt)
        others = [f"{self.attempt}/node/{rank}" for rank in range(1, self.nodes.count)]
        if others:
            print(f"waiting at {self.host}:{self.port} for {len(others)} other machines", flush=True)
        while missing := [key for key in others if not store.check([key])]:
            if time.monotonic() > self.deadline:
                ranks = ", ".join(key.rpartition("/")[2] for key in missing)
                raise Failure(
                    f"machine 0 waited {self.nodes.seconds:g} s at {self.host}:{self.port} for node rank {ranks} of "
                    f"{self.nodes.count}: start `python -m distill.launch` there"
                )
            time.sleep(_PAUSE)
        joined = {key.rpartition("/")[2]: json.loads(store.get(key)) for key in others}
        wrong = sorted(rank for rank, node in joined.items() if node["asked"] != self.asked)
        refused = f"node rank {', '.join(wrong)} was given another request than machine 0: give all the same" * bool(
            wrong
        )
        store.set(f"{self.attempt}/go", json.dumps({"nodes": [n["id"] for n in joined.values()], "refused": refused}))
        if refused:
            raise InputError(refused)

    # --- the other machines ---

    def _join(self) -> TCPStore:
        print(f"node rank {self.nodes.rank} looks for machine 0 at {self.host}:{self.port}", flush=True)
        seen = "nothing listens there"
        while time.monotonic() < self.deadline:
            try:
                socket.create_connection((self.host, self.port), timeout=5).close()  # quieter than the store's own try
                store = TCPStore(self.host, self.port, None, False, _seconds(30), wait_for_workers=False)
                if (go := self._counted_in(store)) is not None:
                    if go["refused"]:
                        raise InputError(go["refused"])
                    store.set_timeout(_seconds(300))
                    return store
                seen = "it is busy with an attempt that began without this one: is another machine of this rank there?"
            except (OSError, DistNetworkError, DistStoreError) as error:  # machine 0 is not there yet, or starts anew
                seen = str(error).splitlines()[0]
            time.sleep(_PAUSE)
        raise Failure(
            f"node rank {self.nodes.rank} waited {self.nodes.seconds:g} s for machine 0 at {self.host}:{self.port}: "
            f"{seen}"
        )

    def _counted_in(self, store: TCPStore) -> dict[str, Any] | None:
        """Return machine 0's word when this agent is of its attempt; None when it began without it."""
        self.attempt = store.get("attempt").decode()
        go = f"{self.attempt}/go"
        if not store.check([go]):  # the newest agent of a rank is the one that lives
            store.set(f"{self.attempt}/node/{self.nodes.rank}", json.dumps({"id": self.me, "asked": self.asked}))
        while not store.check([go]):
            if time.monotonic() > self.deadline:
                return None
            time.sleep(_PAUSE)
        word: dict[str, Any] = json.loads(store.get(go))
        return word if self.me in word["nodes"] else None

    # --- what torch elastic asks of every rendezvous ---

    def get_backend(self) -> str:
        """Return the name of this kind."""
        return "redistill"

    @property
    def use_agent_store(self) -> bool:
        """The workers use this store: it is as young as they are."""
        return True

    def get_run_id(self) -> str:
        """Return the attempt's name."""
        return self.attempt

    def is_closed(self) -> bool:
        """Never: an agent takes part in one attempt."""
        return False

    def set_closed(self) -> None:
        """Nothing to close."""

    def num_nodes_waiting(self) -> int:
        """Nobody can join a run that has begun."""
        return 0

    def shutdown(self) -> bool:
        """The store ends with the agent."""
        return True


def _seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def interface_towards(host: str) -> tuple[str, str]:
    """Return this machine's (address, network interface) that reach `host`; InputError when none does."""
    import psutil

    try:
        family, _, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            mine = probe.getsockname()[0]
    except OSError as error:
        raise InputError(
            f"rendezvous host {host!r} cannot be reached ({error}): give an address of machine 0"
        ) from error
    if mine.startswith("127."):
        mine = "127.0.0.1"  # of all the loopback's addresses only this one is listed
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == mine for entry in addresses):
            return mine, name
    raise InputError(f"no network interface here has {mine}, the address from which {host!r} is reached")
