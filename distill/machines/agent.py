"""The torch elastic agent of one machine: python -m distill.machines.agent PLAN (JSON), started by distill.launch.

It never restarts workers itself: an attempt fails as a whole, and distill.launch begins another where it may.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from distill.errors import Failure, InputError
from distill.machines import failures
from distill.machines.failures import Failed
from distill.machines.nodes import Nodes
from distill.machines.rendezvous import Rendezvous, interface_towards
from distill.request import AGENT, ERROR, LOGS, TrainRequest

_OTHERS = 5.0  # seconds another machine has to say why it failed


def main() -> int:
    """Run one attempt; returns 0 when it was finished. The last line of output says why it failed."""
    plan = json.loads(sys.argv[1])
    path, nodes, processes = Path(plan["request"]), Nodes(**plan["nodes"]), int(plan["processes"])
    logs = _RankLogs(Path(TrainRequest.load(path).output) / "logs", nodes.rank)
    try:
        return _run(path, nodes, processes, logs)
    except (InputError, Failure) as error:
        _say(Failed(-1, nodes.rank, os.getpid(), 0.0, "own", str(error), "", isinstance(error, InputError)))
    except RuntimeError as error:  # the store went away with machine 0
        kind = failures.kind_of(error)
        _say(Failed(-1, nodes.rank, os.getpid(), 0.0, kind, f"agent of node {nodes.rank}: {error}".splitlines()[0], ""))
    return 1


def _run(path: Path, nodes: Nodes, processes: int, logs: "_RankLogs") -> int:
    rendezvous = Rendezvous(nodes, TrainRequest.load(path).digest())
    address, interface = interface_towards(rendezvous.host)
    os.environ[AGENT] = str(os.getpid())
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME"):
        os.environ.setdefault(variable, interface)
    spec = WorkerSpec(
        role="train",
        local_world_size=processes,
        entrypoint=sys.executable,
        args=("-u", "-m", "distill.worker", str(path)),
        rdzv_handler=rendezvous,
        max_restarts=0,
        monitor_interval=0.1,
        local_addr=address,
    )
    agent = LocalElasticAgent(spec, logs, log_line_prefix_template="[rank ${rank}] ", shutdown_timeout=10)
    result = agent.run()
    if not result.is_failed():
        return 0
    for rank, failure in result.failures.items():
        _note(logs, nodes, rank, failure)
    found = failures.cause(logs.folder, _OTHERS if nodes.count > 1 else 0)
    if found is not None:
        _say(found if found.kind != "lost" else _lost(found, logs.folder))
    return 1


def _note(logs: "_RankLogs", nodes: Nodes, rank: int, failure: ProcessFailure) -> None:
    """Write down how a worker ended that could not do so itself."""
    if any(failed.rank == rank for failed in failures.noted(logs.folder)):
        return
    if failure.exitcode < 0:
        kind = "ended" if failure.exitcode == -signal.SIGTERM else "killed"
        reason = f"was killed by {signal.Signals(-failure.exitcode).name}"
    else:
        kind, reason = "own", f"ended with exit code {failure.exitcode}"
    where = logs.path(rank)
    failed = Failed(rank, nodes.rank, failure.pid, float(failure.timestamp), kind, reason, str(where))  # type: ignore[arg-type]
    failures.note(logs.folder, failed)


def _lost(found: Failed, folder: Path) -> Failed:
    told = {failed.rank for failed in failures.noted(folder)}
    reason = f"lost the others: a process or machine is gone without a word (ranks {sorted(told)} noticed it)"
    return Failed(found.rank, found.node, found.pid, found.time, "lost", reason, found.log)


def _say(failed: Failed) -> None:
    sys.stdout.write(ERROR + json.dumps(vars(failed)) + "\n")  # in one write: threads write to it, too
    sys.stdout.flush()


class _RankLogs(LogsSpecs):
    """OUTPUT/logs/ATTEMPT/rank-N.log holds what a worker writes; with its rank before each line it is shown, too."""

    def __init__(self, root: Path, node: int) -> None:
        super().__init__(str(root))
        self.root, self.node, self.folder = root, node, root

    def path(self, rank: int | str) -> Path:
        return self.folder / f"rank-{rank}.log"

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        self.folder = self.root / envs[0]["TORCHELASTIC_RUN_ID"]
        self.folder.mkdir(parents=True, exist_ok=True)
        for env in envs.values():
            env[LOGS] = str(self.folder)
        outs: Any = {local: str(self.path(env["RANK"])) for local, env in envs.items()}
        nowhere = dict.fromkeys(envs, "")  # a worker sends its errors where its output goes
        unused = {local: str(self.path(env["RANK"])) + ".elastic" for local, env in envs.items()}
        return LogsDest(outs, nowhere, outs, {}, unused, "", "")

    @property
    def root_log_dir(self) -> str:
        return str(self.root)


if __name__ == "__main__":
    sys.exit(main())
