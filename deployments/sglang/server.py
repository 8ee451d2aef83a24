"""An SGLang server as a child process: its command line, started, waited for, taken down as a whole."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml

from deployments import process
from deployments.errors import Failure, InputError

if TYPE_CHECKING:
    import psutil

PYTHON = "REDISTILL_SGLANG_PYTHON"  # names the interpreter of SGLang's own environment
MADE = ".venv-sglang/bin/python"  # where `make sglang-cpu` puts it
_POLL = 0.2  # seconds between two looks at a server that starts


@dataclass(frozen=True)
class Options:
    """How a teacher is served. `extra` goes to SGLang as it is."""

    model: str
    host: str = "127.0.0.1"
    port: int = 0  # a free one
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: str = "auto"
    max_tokens: int = 0  # of the cache of keys and values; 0: 8,192 on a CPU, what there is on a GPU
    tensor_parallel: int = 1
    data_parallel: int = 1
    hidden_states: Literal["bfloat16", "float32", "lists"] = "bfloat16"  # how they are sent; lists are SGLang's own
    api_key: str = field(default="", repr=False)
    extra: Sequence[str] = ()


@dataclass(frozen=True)
class Served:
    """A server that is ready."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path
    seconds_to_ready: float


def argv(options: Options, port: int) -> list[str]:
    """Return what follows `python -m sglang.launch_server`.

    As an offline teacher needs it: a radix cache or a chunked prefill would leave rows of hidden states out without
    a word, no grammar is asked for, and a server that has nothing to do leaves the processor to others.
    """
    given: dict[str, object] = {
        "model-path": options.model,
        "host": options.host,
        "port": port,
        "device": options.device,
        "dtype": "float32" if options.dtype == "auto" and options.device == "cpu" else options.dtype,
        "chunked-prefill-size": -1,
        "grammar-backend": "none",
    }
    if options.device == "cpu":
        given |= {"attention-backend": "torch_native", "mem-fraction-static": 0.2}
    if limit := options.max_tokens or (8192 if options.device == "cpu" else 0):
        given["max-total-tokens"] = limit
    if options.tensor_parallel > 1:
        given["tensor-parallel-size"] = options.tensor_parallel
    if options.data_parallel > 1:
        given["data-parallel-size"] = options.data_parallel
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    switches = "--disable-radix-cache", "--enable-return-hidden-states", "--enable-metrics", "--sleep-on-idle"
    return [*words, *switches, *options.extra]


def device_of(name: str) -> Literal["cpu", "cuda"]:
    """Return the device that `auto`, `cpu` or `cuda` means here."""
    cuda = Path("/dev/nvidiactl").exists() if name == "auto" else name == "cuda"
    return "cuda" if cuda else "cpu"


def environment(options: Options) -> dict[str, str]:
    """Return the variables that the plugins and SGLang read."""
    plugins: dict[str, str] = {}
    if options.hidden_states != "lists":
        plugins["REDISTILL_HIDDEN_STATES"] = options.hidden_states
    if options.device == "cpu":
        plugins["SGLANG_PLATFORM"] = "redistill_cpu"
    if Path(options.model).is_dir():
        plugins["HF_HUB_OFFLINE"] = "1"
    return plugins


def interpreter(named: str = "") -> str:
    """Return the Python that has SGLang: the one named, that of the environment, of `make sglang-cpu`, or this one."""
    for path in (named, os.environ.get(PYTHON, "")):
        if path and not shutil.which(path):
            raise InputError(f"{path!r} is no Python interpreter: name that of the environment SGLang is installed in")
        if path:
            return path
    if find_spec("sglang"):
        return sys.executable
    made = Path(__file__).resolve().parents[2] / MADE
    if made.is_file():
        return str(made)
    raise InputError(
        f"SGLang is not installed here: run `make sglang-cpu`, or set {PYTHON} to the interpreter of its environment"
    )


@contextmanager
def serving(options: Options, *, python: str = "", log: Path | None = None, timeout: float = 600.0) -> Iterator[Served]:
    """Serve while the block runs; it begins when the server is healthy, and ends with its whole process tree.

    Raises InputError for a port that is taken or where SGLang is not installed, Failure when the server is not healthy
    after `timeout` seconds or ends before. The log can be read by this user alone, and the key is blacked out in it.
    """
    executable, port = interpreter(python), process.free_port(options.host, options.port, "port")
    with tempfile.TemporaryDirectory(prefix="sglang-") as folder:
        written = log or Path(folder) / "server.log"
        command = [executable, "-m", "sglang.launch_server", *argv(options, port)]
        if options.api_key:  # in a file of ours alone: a command line is seen by all users of the machine
            secret = Path(folder) / "config.yaml"
            secret.touch(mode=0o600)
            secret.write_text(yaml.safe_dump({"api-key": options.api_key}))
            command += ["--config", str(secret)]
        began = time.monotonic()
        written.touch(mode=0o600)
        with written.open("ab") as output:
            server = process.start(command, environment=environment(options), output=output)
        known: set[psutil.Process] = set()
        try:
            url = f"http://{_reached(options.host)}:{port}"
            try:
                _await_health(url, server, known, timeout)
            except Failure as error:
                _black_out(options.api_key, written)
                raise Failure(f"{error}; {process.last_lines(written)}") from error
            _black_out(options.api_key, written)
            yield Served(url, server, written, time.monotonic() - began)
        finally:
            process.stop(server, known)
            _black_out(options.api_key, written)


def _reached(host: str) -> str:
    """Return how a server that listens on `host` is reached from this machine, as part of a URL."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{host}]" if ":" in host else host


def _black_out(key: str, log: Path) -> None:
    """Write asterisks over a key, which SGLang logs with its arguments; it goes on writing at the end meanwhile."""
    for word in {key, repr(key)[1:-1]} - {""} if log.is_file() else ():  # it may be the terminal
        with log.open("r+b") as file:
            content, secret = file.read(), word.encode()
            at = content.find(secret)
            while at >= 0:
                file.seek(at)
                file.write(b"*" * len(secret))
                at = content.find(secret, at + len(secret))


def _await_health(url: str, server: "subprocess.Popen[bytes]", known: "set[psutil.Process]", timeout: float) -> None:
    """Return once the server is healthy; `known` grows by the processes that it starts meanwhile."""
    import httpx

    deadline = time.monotonic() + timeout
    with httpx.Client(base_url=url, timeout=2.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            known |= process.family(server)
            if server.poll() is not None:
                raise Failure(f"SGLang ended with exit code {server.returncode}")
            try:
                if client.get("/health").is_success:
                    known |= process.family(server)
                    return
            except httpx.TransportError:  # not listening yet
                pass
            time.sleep(_POLL)
    raise Failure(f"SGLang was not healthy after {timeout:g} s: give it longer (--timeout, or teacher.start_seconds)")
