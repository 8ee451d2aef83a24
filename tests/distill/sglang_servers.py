"""SGLang servers for tests: one that can be killed and started again, proxies with faults, a router; and how to ask."""

import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray

from deployments.sglang.server import Options, Served, interpreter, serving
from distill.prompts import encode, load_tokenizer
from distill.teachers.sglang import SGLangTeacher

KEY = "open sesame"
NEW, K = 12, 8
HEADERS = {"Authorization": f"Bearer {KEY}"}


def prompts_of(checkpoint: Path, count: int) -> list[NDArray[np.int32]]:
    """Return different prompts of mixed lengths."""
    words = ["The printer on the second floor", "I cannot log in since", "Please send me", "How do I set up the mail"]
    texts = [f"{words[at % 4]} {at} " + "does not print any more " * (at % 5) for at in range(count)]
    return encode(load_tokenizer(checkpoint), texts, 200).ids


def teacher_at(checkpoint: Path, urls: Sequence[str], **options: Any) -> SGLangTeacher:
    """Return a teacher on servers that want KEY."""
    given = {"api_key": KEY, "top_k": K, "max_new_tokens": NEW, "outage_seconds": 20.0, **options}
    return SGLangTeacher(checkpoint, urls, **given)


def asked(
    teacher: Any, prompts: Sequence[NDArray[np.int32]], progress: Callable[[int, int], None] | None = None
) -> dict[int, Any]:
    """Return the signal of each prompt, each of which came once."""
    found = list(teacher.ask(prompts, progress))
    assert sorted(row for row, _ in found) == list(range(len(prompts)))
    return dict(found)


def alive(served: Served) -> bool:
    """Return whether a server still answers what it is asked."""
    body = {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 1}}
    return httpx.post(f"{served.url}/generate", json=body, headers=HEADERS, timeout=60).is_success


def update(served: Served, checkpoint: Path) -> None:
    """Give a server other weights."""
    url, body = f"{served.url}/update_weights_from_disk", {"model_path": str(checkpoint)}
    response = httpx.post(url, json=body, headers=HEADERS, timeout=60)
    assert response.is_success, response.text


class Restartable:
    """A server that can be killed and started again; it would end with the thread that started it, so there is one."""

    served: Served

    def __init__(self, options: Options) -> None:
        self._options, self._held, self._thread = options, ExitStack(), ThreadPoolExecutor(1)
        self._thread.submit(self._start).result()

    def _start(self) -> None:
        self._held.close()  # what is left of the one before
        self.served = self._held.enter_context(serving(self._options))

    def kill(self) -> "Future[None]":
        """Kill it, and start it again; it is there again when the result is."""
        self.served.process.kill()
        return self._thread.submit(self._start)

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Stop all its processes for a while, connections being taken still."""
        parent = psutil.Process(self.served.process.pid)
        family = [parent, *parent.children(recursive=True)]
        for each in family:
            each.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for each in family:
                each.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop it."""
        self._thread.submit(self._held.close).result()
        self._thread.shutdown()


@dataclass
class Proxy:
    """A proxy's address, and how often /generate was asked for through it."""

    url: str = ""
    asked: int = 0
    sockets: list[socket.socket] = field(default_factory=list)


@contextmanager
def proxy(served: Served, breaks: Callable[[int], str]) -> Iterator[Proxy]:
    """Forward connections to a server; `breaks` says of each by its number: "", "reset", "slow" or "trickle".

    reset: ended when the first reply comes. slow: replies come 0.2 s later. trickle: those of /generate come slowly, 20
    bytes a second.
    """
    host, port = served.url.removeprefix("http://").split(":")
    listener, this = socket.create_server(("127.0.0.1", 0)), Proxy()

    def there(source: socket.socket, sink: socket.socket, generates: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if b"POST /generate" in data:
                    generates.set()
                    this.asked += 1
                sink.sendall(data)
        _end(source, sink)

    def back(source: socket.socket, sink: socket.socket, fault: str, generates: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if fault == "reset":  # RST instead of FIN
                    sink.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                if fault == "slow":
                    time.sleep(0.2)
                if fault == "trickle" and generates.is_set():
                    for at in range(len(data)):
                        sink.sendall(data[at : at + 1])
                        time.sleep(0.05)
                else:
                    sink.sendall(data)
        _end(source, sink)

    def accept() -> None:
        number = 0
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            fault, number, generates = breaks(number), number + 1, threading.Event()
            try:
                server = socket.create_connection((host, int(port)))
            except OSError:
                client.close()
                continue
            threading.Thread(target=there, args=(client, server, generates), daemon=True).start()
            threading.Thread(target=back, args=(server, client, fault, generates), daemon=True).start()

    this.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    threading.Thread(target=accept, daemon=True).start()
    try:
        yield this
    finally:
        listener.close()


def _end(*sockets: socket.socket) -> None:
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)  # wakes the other direction
        each.close()


def has_router() -> bool:
    """Return whether SGLang's environment has its router."""
    return not subprocess.run(
        [interpreter(), "-c", "import sglang_router"], capture_output=True, check=False
    ).returncode


@contextmanager
def router(urls: Sequence[str], log: Path, ports: tuple[int, int]) -> Iterator[str]:
    """Run SGLang's router before servers that want KEY; it begins when both have been found."""
    command = [interpreter(), "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--policy", "round_robin"]
    command += ["--port", str(ports[0]), "--prometheus-port", str(ports[1]), "--api-key", KEY, "--worker-urls", *urls]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ})
    url, deadline = f"http://127.0.0.1:{ports[0]}", time.monotonic() + 120
    try:
        while True:
            with suppress(httpx.TransportError):
                listed = httpx.get(f"{url}/workers", headers=HEADERS, timeout=10)
                if listed.is_success and sum(each["is_healthy"] for each in listed.json()["workers"]) == len(urls):
                    break
            told = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text("utf-8", "replace"))[-2000:]
            assert process.poll() is None, told
            assert time.monotonic() < deadline, told
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)
