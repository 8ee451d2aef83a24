"""Are the rows that a version learned from still those that it was registered with?"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from deployments.connection import masked
from deployments.errors import Failure
from deployments.verification import file_hash

WINDOW_FILE = "window.parquet"  # in the folder of its retrain: the rows of its window, as they were read
UNREAD = "not verified: "


def changed_data(tags: Mapping[str, str], runs: Path | None, log: str | None) -> dict[str, str]:
    """Returns place -> "unchanged ...", "changed ..." or "not verified ..." for a version's window.

    Its copy in the run's folder (below `runs`) is compared by the tag `window_sha256`, the request log by
    `window_digest`. Raises Failure when the log cannot be read.
    """
    window, found = tags.get("window", "?"), {}
    copy = None if runs is None else runs / tags.get("retrain_id", "?") / WINDOW_FILE
    if copy is None or not copy.is_file():
        found[f"window {tags.get('window', '?')} in the run's folder"] = f"{UNREAD}there is no {copy or 'workspace'}"
    else:
        found[str(copy)] = _compared("SHA-256", file_hash(copy), tags.get("window_sha256"))
    if log:
        found[f"window {window} of {masked(log)}"] = _compared(
            "digest", _digest_of(log, window), tags.get("window_digest")
        )
    return found


def _compared(what: str, found: str, registered: str | None) -> str:
    if registered is None:
        return f"{UNREAD}the version has no {what} of it among its tags"
    same = found == registered
    return f"unchanged, {what} {found}" if same else f"changed: {what} {found}, registered was {registered}"


def _digest_of(log: str, window: str) -> str:
    """By the command of the package that owns the log: neither imports the other."""
    command = [sys.executable, "-m", "monitoring.traffic", "window", "--", log, window]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    digests = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("sha256 ")]
    if done.returncode or not digests:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise Failure(
            f"window {window} of --log {masked(log)!r} cannot be read: {masked(reason.removeprefix('error: '))}"
        )
    return digests[0]
