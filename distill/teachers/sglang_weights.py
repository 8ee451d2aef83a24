"""Who serves at an address, and which weights: an SGLang server itself, or all servers of a router.

    server    GET /model_info        path and version of its weights
    router    GET /workers           its servers, each of which is asked itself
              GET /get_model_info    where none of them is reached from here: the router asks one of them

A router does not say whose an answer is, so that all of its servers have to have the same weights.
"""

import time
from typing import Any, NamedTuple

from distill.errors import InputError
from distill.teachers.servers import Absent, Server, Servers


class Weights(NamedTuple):
    """What a server says that it serves."""

    model_path: str
    weight_version: str


class Behind:
    """The servers behind the addresses that are asked."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self._routers: set[str] = set()
        self._workers: dict[str, Server] = {}

    async def models(self, server: Server) -> list[tuple[Server, Any]]:
        """Return (server, what it says of its model) of those at an address that answer now."""
        if server.url not in self._routers:
            try:
                told = await self.servers.get(server, "/model_info")
                return [] if told is None else [(server, told)]
            except Absent:
                self._routers.add(server.url)
        if not (listed := await self.servers.get(server, "/workers")):
            return []
        awake = [worker for worker in self._of(listed) if worker.rests_until <= time.monotonic()]
        said = [(worker, await self.servers.get(worker, "/model_info")) for worker in awake]
        if reached := [(worker, told) for worker, told in said if told is not None]:
            return reached
        told = await self.servers.get(server, "/get_model_info")
        return [] if told is None else [(server, told)]

    def _of(self, listed: Any) -> list[Server]:
        entries = listed.get("workers") if isinstance(listed, dict) else None
        urls = [str(entry["url"]).rstrip("/") for entry in entries or [] if entry.get("is_healthy")]
        return [self._workers.setdefault(url, Server(url)) for url in urls if url.startswith("http")]


def weights_of(info: Any) -> Weights:
    """Read what /model_info says; InputError where it is not SGLang's."""
    if not isinstance(info, dict) or "model_path" not in info:
        raise InputError(f"/model_info said {str(info)[:200]!r}: teacher.urls names something else than SGLang servers")
    return Weights(str(info["model_path"]), str(info.get("weight_version")))
