"""Serves a Bento for real on loopback, asks it a few prompts and compares its answers with the checkpoint's."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe
from subprocess import Popen
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from deployments import process
from deployments.bento.build import Bento
from deployments.errors import Failure, InputError

if TYPE_CHECKING:
    import httpx
    import psutil

HOST = "127.0.0.1"
POLL = 0.1  # between two looks at a server that starts [s]


@dataclass(frozen=True)
class Smoke:
    """What came of a smoke test that passed; the lists are in the order of the prompts."""

    url: str
    answers: list[str]
    mean_logprob: list[float]  # of each answer [nats/token]
    seconds_to_ready: float
    agreed: int  # answers equal to what was expected: all of them


@dataclass(frozen=True)
class Server:
    """A Bento that is served and ready."""

    url: str
    log: Path  # what it wrote so far, stdout and stderr
    seconds_to_ready: float
    pid: int
    key: str = ""  # asked for in the Authorization header, if any
    max_prompts: int = 1  # in one request
    max_body_bytes: int = 8_000_000  # of one request


def smoke_test(
    bento: Bento,
    prompts: Sequence[str],
    expected: Sequence[str],
    *,
    model_version: str,
    port: int = 0,
    timeout: float = 180.0,
) -> Smoke:
    """Serve `bento`, ask it `prompts` and return its answers, which must be `expected`; end the server in any case.

    `port` 0 takes a free one; `timeout` [s] bounds the start, and the answers as well. Raises InputError when the
    port is taken, Failure when the server does not get ready or answers otherwise. Messages quote no prompt.
    """
    import httpx

    if not prompts or len(prompts) != len(expected):
        raise InputError(
            f"smoke test of {bento.tag}: {len(prompts)} prompts and {len(expected)} expected answers; give one of "
            "each or more, and as many of both (packaging.smoke_rows)"
        )
    with serve(bento, port=port, timeout=timeout) as server:
        try:
            headers = {"Content-Type": "application/json"}
            headers |= {"Authorization": f"Bearer {server.key}"} if server.key else {}
            with httpx.Client(base_url=server.url, timeout=timeout, trust_env=False, headers=headers) as client:
                rows = []
                for part in _requests(prompts, server.max_prompts, server.max_body_bytes):
                    response = client.post("/generate", content=body(prompts[part]))
                    rows += _check_answers(bento, response, expected[part], model_version)
                _check_endpoints(bento, client)
        except httpx.TransportError as error:
            reason = f"{type(error).__name__}: {error}"
            raise Failure(
                f"Bento {bento.tag} stopped answering ({reason}); {process.last_lines(server.log)}"
            ) from error
        return Smoke(
            url=server.url,
            answers=[row["response"] for row in rows],
            mean_logprob=[row["mean_logprob"] for row in rows],
            seconds_to_ready=server.seconds_to_ready,
            agreed=len(rows),
        )


def body(prompts: Sequence[str]) -> bytes:
    """Return the body of a request."""
    return json.dumps({"prompts": list(prompts)}, ensure_ascii=False).encode()


def _requests(prompts: Sequence[str], most: int, longest: int) -> Iterator[slice]:
    """Yield which prompts go into one request: at most `most`, and no more than one if it has over `longest` bytes."""
    at = 0
    while at < len(prompts):
        count = min(most, len(prompts) - at)
        while count > 1 and len(body(prompts[at : at + count])) > longest:
            count = (count + 1) // 2
        yield slice(at, at + count)
        at += count


def _reason(response: "httpx.Response") -> str:
    """Return why a service refused a request, which quotes nothing of it; "" where it does not say."""
    try:
        found = response.json()
    except ValueError:
        return ""
    return f": {found['error']}" if isinstance(found, dict) and "error" in found else ""


def _check_answers(
    bento: Bento, response: "httpx.Response", expected: Sequence[str], model_version: str
) -> list[dict[str, Any]]:
    if response.status_code != 200:
        raise Failure(
            f"Bento {bento.tag} answered POST /generate with status {response.status_code}, not with 200"
            f"{_reason(response)} (the limits of a service are settings: packaging.max_*)"
        )
    rows: list[dict[str, Any]] = response.json()
    if len(rows) != len(expected):
        raise Failure(f"Bento {bento.tag} gave {len(rows)} answers to {len(expected)} prompts")
    if versions := {row["model_version"] for row in rows} - {model_version}:
        raise Failure(
            f"Bento {bento.tag} says it is model version {', '.join(sorted(versions))}, not {model_version}: "
            "build it again"
        )
    differ = sum(row["response"] != answer for row, answer in zip(rows, expected, strict=True))
    if differ:
        raise Failure(
            f"Bento {bento.tag} answers {differ} of {len(expected)} smoke prompts otherwise than its checkpoint: "
            "it is not promoted; compare its src/checkpoint and src/model.json with the checkpoint that was judged"
        )
    return rows


def _check_endpoints(bento: Bento, client: "httpx.Client") -> None:
    for path, content in (
        ("/livez", ""),
        ("/readyz", ""),
        ("/healthz", ""),
        ("/metrics", "bentoml_service_request_total"),
    ):
        reply = client.get(path)
        if reply.status_code != 200 or content not in reply.text:
            raise Failure(f"Bento {bento.tag} answered GET {path} with status {reply.status_code}, without {content!r}")


@contextmanager
def serve(bento: Bento, *, port: int = 0, timeout: float = 180.0, own_key: bool = True) -> Iterator[Server]:
    """Serve a Bento on loopback while the block runs; it begins when the server is ready.

    Where the Bento asks for a key, this server gets one of its own, unless `own_key` is false: then the environment has
    to hold it. Raises InputError when the port is taken, Failure when the server is not ready after `timeout` seconds.
    """
    port, model = free_port(port), _model(bento)
    key = {model["api_key_env"]: token_urlsafe()} if model["api_key_env"] and own_key else {}
    with TemporaryDirectory(prefix="bento-serve-") as folder:
        log = Path(folder) / "server.log"
        environment = {
            # Not the store's own home: a server empties the metrics folder of its home, also that of a live server.
            "BENTOML_HOME": str(Path(folder) / "home"),
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_CONTAINERIZED": "true",  # a worker that dies ends the server, and is not started for ever anew
            **key,
        }
        command = [sys.executable, "-m", "bentoml", "serve", str(bento.path), "--host", HOST, "--port", str(port)]
        began = time.monotonic()
        with log.open("wb") as output:
            server = process.start(command, environment=environment, output=output)
        known: set[psutil.Process] = set()
        try:
            _await_ready(bento, server, known, log, port, began + timeout, timeout)
            ready = time.monotonic() - began
            limits = model["max_prompts"], model["max_body_bytes"]
            yield Server(f"http://{HOST}:{port}", log, ready, server.pid, "".join(key.values()), *limits)
        finally:
            process.stop(server, known)


def _model(bento: Bento) -> dict[str, Any]:
    path = bento.path / "src" / "model.json"
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise Failure(f"Bento {bento.tag} is damaged: {path} cannot be read ({error}); build it again") from error


def _await_ready(
    bento: Bento,
    server: "Popen[bytes]",
    known: "set[psutil.Process]",
    log: Path,
    port: int,
    deadline: float,
    timeout: float,
) -> None:
    """Return once the server is ready; `known` grows by the processes that it starts meanwhile."""
    import httpx

    with httpx.Client(base_url=f"http://{HOST}:{port}", timeout=2.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            known |= process.family(server)
            if server.poll() is not None:
                raise Failure(f"Bento {bento.tag} could not be served{_why(log, port)}; {process.last_lines(log)}")
            try:
                if client.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:  # not listening yet
                pass
            time.sleep(POLL)
    raise Failure(
        f"Bento {bento.tag} was not ready after packaging.timeout = {timeout:g} s: raise it if the machine is slow; "
        + process.last_lines(log)
    )


def _why(log: Path, port: int) -> str:
    if "Address already in use" in log.read_text("utf-8", "replace"):
        return f": port {port} was taken meanwhile; set packaging.port to another one, or to 0 for a free one"
    return ""


def free_port(port: int) -> int:
    """Return `port`, or a free one for 0; InputError when it cannot be listened on."""
    return process.free_port(HOST, port, "packaging.port")
