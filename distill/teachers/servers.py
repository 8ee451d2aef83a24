"""Several HTTP servers that answer alike, as one: the least busy is asked, one that fails rests and comes back."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

import anyio
import httpx

from distill.errors import Failure, InputError
from distill.teachers.spent import Spent as Spent

_FIRST_REST, _LONGEST_REST = 0.25, 15.0  # seconds a failing server is left alone: doubled each time, with jitter
_ATTEMPTS = 5  # a request that so many servers took and did not answer is not sent again
_CONNECT = 10.0  # seconds
_KEPT = 3.0  # seconds an unused connection is kept: servers close theirs after 5
# No proxy of the environment stands between this machine and itself.
HERE: dict[str, None] = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))
_BUSY = 429
_AWAY = {502, 503, 504}  # of a router or a proxy: nobody is behind it
_KEY = {401, 403}


@dataclass
class Server:
    """One server, as far as it is known."""

    url: str
    load: int = 0  # requests under way
    failures: int = 0  # in a row
    rests_until: float = 0.0  # of the monotonic clock
    asked_until: float = 0.0  # it said itself that it wants to be left alone so long, whatever it answers meanwhile

    def back(self) -> float:
        """Return when it may be asked again, of the monotonic clock."""
        return max(self.rests_until, self.asked_until)


class Refused(InputError):
    """A server understood a request and will not answer it; `said` is its JSON, or the text that is none."""

    def __init__(self, reason: str, said: Any = None) -> None:
        super().__init__(reason)
        self.said = said


class Absent(Refused):
    """A server does not know the path, or not what it was asked for there."""


class Servers:
    """Sends requests to whoever is least busy, and again when one is lost; entered in an event loop.

    Raises InputError for what servers refuse, and Failure when none has answered for `outage_seconds`, or when several
    took the same request and did not answer in `request_seconds`.
    """

    def __init__(
        self, urls: Sequence[str], *, api_key: str, connections: int, request_seconds: float, outage_seconds: float
    ) -> None:
        self.servers = [Server(url.rstrip("/")) for url in urls]
        self.spent = Spent()
        self._outage, self._limit = outage_seconds, request_seconds
        self._answered = time.monotonic()
        self._last = "no request was sent"
        self._ended = anyio.Event()  # set when a request under way has ended
        self._options: dict[str, Any] = {
            "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
            "timeout": httpx.Timeout(request_seconds, connect=_CONNECT),
            "limits": httpx.Limits(keepalive_expiry=_KEPT),
            "verify": httpx.create_ssl_context(),
            "mounts": HERE,
        }
        # One client for each request under way: a client looks through all its connections at every request and every
        # reply, which for 64 of them took several times the rest of the work.
        self._unused: list[httpx.AsyncClient] = []
        self._connections = connections  # that are kept between requests

    async def __aenter__(self) -> "Servers":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._unused:
            await client.aclose()

    async def post(self, path: str, body: dict[str, Any]) -> tuple[Server, Any]:
        """Return (who answered, its JSON)."""
        taken, began_asking = 0, time.monotonic()
        while True:
            server = await self._free()
            self.spent.requests += 1
            server.load += 1
            began = time.monotonic()
            try:
                reply = await self._send(server, "POST", path, body)
                self.spent.answered(time.monotonic() - began)
                return server, reply
            except _Lost as lost:
                self.spent.retries += 1
                # That nobody is behind a router is an outage, and no fault of the request while nothing is answered.
                taken += lost.taken and (not lost.away or self._answered > began_asking)
                if taken >= _ATTEMPTS:
                    raise Failure(
                        f"a request to {path} was taken {taken} times and never answered, last: {lost}; what was "
                        "answered before is stored: look into the server's log, or raise teacher.request_seconds "
                        f"({self._limit:g} s)"
                    ) from lost
            finally:
                server.load -= 1
                self._ended.set()
                self._ended = anyio.Event()

    async def get(self, server: Server, path: str) -> Any:
        """Return this server's JSON; None where it does not answer now. Raises Absent where it knows no such path."""
        try:
            return await self._send(server, "GET", path, None)
        except _Lost:
            return None

    async def each(self, path: str) -> list[tuple[Server, Any]]:
        """Return what each server says that answers at once. Raises InputError where none does."""
        said = [(server, await self.get(server, path)) for server in self.servers]
        if not (found := [(server, told) for server, told in said if told is not None]):
            raise self.nobody()
        return found

    def nobody(self) -> InputError:
        """Return what to raise where no server answers at once."""
        return InputError(f"no teacher server answers ({self._last}): start one, or correct teacher.urls")

    async def _free(self) -> Server:
        """Return the least busy server that does not rest, once there is one.

        One that has failed is asked one thing at a time until it has answered: while it hangs, it holds up one request.
        """
        began = time.monotonic()
        while True:
            now = time.monotonic()
            awake = [server for server in self.servers if server.back() <= now]
            if ready := [server for server in awake if not (server.failures and server.load)]:
                self.spent.waited_seconds += now - began
                return min(ready, key=lambda server: server.load)
            soonest = min(server.back() for server in self.servers)
            if (longer := soonest - now) > max(self._outage, _LONGEST_REST):
                raise Failure(
                    f"the teacher's servers want to be left alone for another {longer:.0f} s, and teacher."
                    f"outage_seconds is {self._outage:g}, last: {self._last}; what was answered before is stored: ask "
                    "again then"
                )
            if now - self._answered > self._outage:
                raise Failure(
                    f"no teacher server has answered for {self._outage:g} s, last: {self._last}; what was answered "
                    "before is stored: start "
                    f"{', '.join(server.url for server in self.servers)}, then ask again"
                )
            rests = [server.back() - now for server in self.servers if server.back() > now]
            with anyio.move_on_after(min([*rests, self._answered + self._outage - now + 0.001])):
                await self._ended.wait()

    async def _send(self, server: Server, method: str, path: str, body: dict[str, Any] | None) -> Any:
        try:
            response = await self._exchange(method, server.url + path, body)
        except (httpx.TransportError, TimeoutError) as error:
            unreached = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
            raise self._rest(server, f"{type(error).__name__} {error}".strip(), taken=not unreached) from error
        if response.status_code in _KEY:
            raise InputError(
                f"{server.url}{path} wants another API key (HTTP {response.status_code}): set the one it was started "
                "with, REDISTILL_TEACHER_API_KEY"
            )
        if response.status_code == _BUSY or response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            asked = _retry_after(response)
            lost = self._rest(server, _told(response), taken=response.status_code != _BUSY, at_least=asked)
            lost.away = response.status_code in _AWAY
            raise lost
        if response.status_code == httpx.codes.NOT_FOUND:
            raise Absent(
                f"{server.url}{path} is not there ({_told(response)}): teacher.urls names something else than a "
                "teacher's servers, or the model is not served there",
                _json(response),
            )
        if response.is_error:
            raise Refused(f"{server.url}{path} refused the request: {_told(response)}", _json(response))
        try:
            told = response.json()
        except ValueError as error:
            raise self._rest(server, f"what is no JSON: {_told(response)}", taken=True) from error
        server.failures, server.rests_until, self._answered = 0, 0.0, time.monotonic()
        return told

    async def _exchange(self, method: str, url: str, body: dict[str, Any] | None) -> httpx.Response:
        client = self._unused.pop() if self._unused else httpx.AsyncClient(**self._options)
        try:
            with anyio.fail_after(self._limit):  # httpx's own limit is for each piece of a reply
                return await client.request(method, url, json=body)
        finally:
            if len(self._unused) < self._connections:
                self._unused.append(client)
            else:
                await client.aclose()

    def _rest(self, server: Server, reason: str, *, taken: bool, at_least: float = 0.0) -> "_Lost":
        if server.back() <= time.monotonic():  # what was under way when it failed first is no further failure
            server.failures += 1
            self.spent.rests += 1
            longest = min(_LONGEST_REST, _FIRST_REST * 2 ** min(server.failures - 1, 16))
            server.rests_until = time.monotonic() + random.uniform(longest / 2, longest)  # noqa: S311
        if at_least:  # it said itself how long; not all come back in the same instant
            server.asked_until = max(server.asked_until, time.monotonic() + at_least + random.uniform(0, 0.1))  # noqa: S311
        self._last = f"{server.url}: {reason}"
        return _Lost(self._last, taken)


class _Lost(Exception):
    """A request without an answer; `taken`: a server had it, or (`away`) what stands before the servers."""

    away = False

    def __init__(self, reason: str, taken: bool) -> None:
        super().__init__(reason)
        self.taken = taken


def is_address(url: str) -> bool:
    """Return whether requests can be sent there: http or https, a host, and a port that there can be."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parsed.scheme in {"http", "https"} and bool(parsed.host) and (parsed.port or 0) < 1 << 16


def _told(response: httpx.Response) -> str:
    return f"HTTP {response.status_code} {' '.join(response.text.split())[:300]}"


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds that a server wants to be left alone for, 0 where it does not say (RFC 9110, 10.2.3)."""
    said = response.headers.get("Retry-After", "").strip()
    if not said:
        return 0.0
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(said)
    except ValueError:  # neither a number nor a date: as if it had not been said
        return 0.0
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
