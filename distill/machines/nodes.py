"""Which machines train together, and how they find each other."""

from dataclasses import dataclass

from distill.errors import InputError
from distill.settings import TrainingSettings


@dataclass(frozen=True)
class Nodes:
    """This machine among those that train together; one alone needs no rendezvous."""

    count: int = 1
    rank: int = 0  # 0 hosts the rendezvous
    rendezvous: str = ""  # HOST:PORT of machine 0
    seconds: float = 600.0  # how long to wait for the others
    restarts: int = 0  # new starts after a process or machine was lost

    @classmethod
    def of(cls, settings: TrainingSettings) -> "Nodes":
        """Return what the settings say."""
        found = (
            settings.nodes,
            settings.node_rank,
            settings.rendezvous,
            settings.rendezvous_seconds,
            settings.restarts,
        )
        return cls(*found)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise InputError(f"node_rank {self.rank} is none of {self.count} nodes: they count from 0")
        if self.count > 1:
            self.endpoint()

    def endpoint(self) -> tuple[str, int]:
        """Return host and port; a free port of the loopback where one machine trains alone."""
        if not self.rendezvous and self.count == 1:
            return "127.0.0.1", 0
        host, _, port = self.rendezvous.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise InputError(
                f"rendezvous {self.rendezvous!r}: {self.count} nodes need HOST:PORT, an address of machine 0 that the "
                "others reach"
            )
        return host.strip("[]"), int(port)
