"""Serving a teacher with SGLang: its command line, and a process tree that is gone when it should be."""

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from deployments import process
from deployments.errors import Failure, InputError
from deployments.sglang import server
from deployments.sglang.__main__ import main
from deployments.sglang.server import Options, argv, environment, interpreter, serving


class TestCommandLine:
    def test_states_are_never_cut_and_it_listens_on_loopback(self) -> None:
        words = argv(Options("teacher"), 30000)
        line = shlex.join(words)
        assert "--host 127.0.0.1" in line
        assert "--chunked-prefill-size -1" in line
        assert {"--disable-radix-cache", "--enable-return-hidden-states", "--enable-metrics"} <= set(words)

    def test_a_cpu_has_plain_torch_and_a_bounded_cache_and_a_gpu_what_sglang_chooses(self) -> None:
        cpu = shlex.join(argv(Options("teacher", device="cpu"), 1))
        gpu = shlex.join(argv(Options("teacher", device="cuda", tensor_parallel=2, data_parallel=4), 1))
        assert "--attention-backend torch_native" in cpu
        assert "--max-total-tokens 8192" in cpu
        assert "--dtype float32" in cpu
        assert "--max-total-tokens" not in gpu
        assert "--attention-backend" not in gpu
        assert "--tensor-parallel-size 2 --data-parallel-size 4" in gpu
        assert environment(Options("teacher", device="cpu"))["SGLANG_PLATFORM"] == "redistill_cpu"
        assert "SGLANG_PLATFORM" not in environment(Options("teacher", device="cuda"))

    def test_the_key_is_nowhere_in_it(self) -> None:
        options = Options("teacher", api_key="open sesame")
        assert "sesame" not in shlex.join([*argv(options, 1), *environment(options).values()])
        assert "sesame" not in repr(options)

    @pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", "localhost"])
    def test_it_is_reached_at_the_address_that_it_listens_on(self, host: str) -> None:
        found = process.free_port(host, 0, "port")
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
            listening.bind((host, found))
            listening.listen()
            at = httpx.URL(f"http://{server._reached(host)}:{found}")
            with socket.create_connection((at.host, found), timeout=60):
                pass

    def test_what_cannot_be_served_so_is_said_in_a_line(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        given = ["serve", "--model", str(tmp_path), "--python", sys.executable]
        assert main([*given, "--port", "99999"]) == 2
        assert main([*given, "--port", "0", "--log", str(tmp_path / "no" / "server.log")]) == 1
        told = capsys.readouterr().err.splitlines()
        assert "port = 99999: there is no such port" in told[0]
        assert "server.log" in told[1]

    def test_it_is_printed_on_request(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["argv", "--model", "a b", "--device", "cpu", "--python", sys.executable]) == os.EX_OK
        told = shlex.split(capsys.readouterr().out)
        assert told[told.index("--model-path") + 1] == "a b"
        assert "SGLANG_PLATFORM=redistill_cpu" in told

    def test_further_words_are_split_as_a_shell_does_or_refused_as_usage(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = ["argv", "--model", "a", "--python", sys.executable, "--extra"]
        assert main([*given, "--log-level 'a b'"]) == os.EX_OK
        assert shlex.split(capsys.readouterr().out)[-2:] == ["--log-level", "a b"]
        with pytest.raises(SystemExit) as ended:
            main([*given, "--foo 'bar"])
        assert ended.value.code == 2
        assert "cannot be split into words (No closing quotation)" in capsys.readouterr().err


DEPLOYMENTS = Path(server.__file__).parents[1]
SERVED = Options("/models/teacher", host="0.0.0.0", device="cuda")


class TestManifests:
    def test_the_container_of_kubernetes_serves_with_the_words_of_the_command(self) -> None:
        deployment, service = yaml.safe_load_all((DEPLOYMENTS / "kubernetes" / "sglang.yaml").read_text())
        pod = deployment["spec"]["template"]
        (container,) = pod["spec"]["containers"]
        words = shlex.split(container["args"][0].replace("\\\n", " "))
        assert set(argv(SERVED, 30000)) <= set(words)
        assert pod["metadata"]["labels"] == service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
        assert not [word for word in words if word == "--api-key"]

    def test_the_container_of_compose_does_so_too_and_is_reached_from_this_machine_alone(self) -> None:
        (teacher,) = yaml.safe_load((DEPLOYMENTS / "sglang" / "compose.yaml").read_text())["services"].values()
        assert set(argv(SERVED, 30000)) <= set(shlex.split(teacher["command"]))
        assert teacher["ports"] == ["127.0.0.1:30000:30000"]


class TestWhereItCannotBeStarted:
    def test_an_interpreter_that_is_none_is_named(self) -> None:
        with pytest.raises(InputError, match=r"'/nowhere/python' is no Python interpreter"):
            interpreter("/nowhere/python")

    def test_a_machine_without_sglang_is_told_how_to_get_it(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv(server.PYTHON, raising=False)
        monkeypatch.setattr(server, "MADE", "nowhere/python")
        assert main(["serve", "--model", "teacher"]) == 2
        assert "make sglang-cpu" in capsys.readouterr().err

    def test_a_server_that_ends_at_once_is_a_failure_with_its_last_lines(self) -> None:
        with (
            pytest.raises(Failure, match=r"(?s)exit code 1.*No module named"),
            serving(Options("teacher"), python=sys.executable),
        ):
            pass


# What says its arguments, as SGLang does, and is healthy or not.
STAND_IN = """
import argparse, http.server, pathlib, sys
parser = argparse.ArgumentParser()
for name in ("--port", "--config", "--how"):
    parser.add_argument(name)
given, _ = parser.parse_known_args()
print("server_args", pathlib.Path(given.config).read_text(), flush=True)
if given.how == "ends":
    sys.exit("no memory")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if given.how == "hangs" else 200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(given.port)), Handler).serve_forever()
"""


class TestLog:
    @pytest.fixture(autouse=True)
    def stand_in(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = tmp_path / "modules" / "sglang"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "launch_server.py").write_text(STAND_IN)
        monkeypatch.setenv("PYTHONPATH", str(package.parent))

    def test_it_is_for_this_user_alone_and_has_no_key_while_the_server_runs(self, tmp_path: Path) -> None:
        log = tmp_path / "teacher-server.log"
        for starts in (1, 2):
            with serving(Options("teacher", api_key="open sesame"), python=sys.executable, log=log) as served:
                assert served.log.read_text().count("api-key: ***********\n") == starts
                assert log.stat().st_mode & 0o077 == 0
        assert "sesame" not in log.read_text()

    @pytest.mark.parametrize(
        ("how", "told"), [("ends", r"exit code 1;.*no memory"), ("hangs", r"not healthy after 3 s.*start_seconds")]
    )
    def test_what_it_said_last_is_told_without_the_key(self, how: str, told: str, tmp_path: Path) -> None:
        options, log = Options("teacher", api_key="open sesame", extra=["--how", how]), tmp_path / "log"
        with (
            pytest.raises(Failure, match=rf"(?s){told}") as raised,
            serving(options, python=sys.executable, log=log, timeout=60.0 if how == "ends" else 3.0),
        ):
            pass
        assert "sesame" not in f"{raised.value}{log.read_text()}"


@pytest.mark.sglang
@pytest.mark.integration
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_server_whose_command_ends(
    how: signal.Signals, tiny_checkpoint: Path, free_port: Callable[[], int]
) -> None:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "deployments.sglang",
        "serve",
        "--model",
        str(tiny_checkpoint),
        "--port",
        str(port),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        assert httpx.get(f"http://127.0.0.1:{port}/health").is_success
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 3
        process.send_signal(how)
        process.wait(60)
    _, left = psutil.wait_procs(family, timeout=30)
    assert not left
