"""Servers that are to be given a student's weights, and are something else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.errors import InputError
from distill.generation import Sampling
from distill.rounds.student_servers import StudentOnServers


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ((200, {}, b"<html>Welcome</html>"), r"HTTP 200 <html>Welcome</html>"),
        ((301, {"Location": "https://elsewhere/"}, {"success": True}), "HTTP 301"),
        ((200, {}, []), r"HTTP 200 \[\]"),
        ((200, {}, {"success": False, "message": "other architecture"}), "other architecture"),
        ((400, {}, {"success": True}), "HTTP 400"),
    ],
)
def test_what_is_no_server_that_took_the_weights_is_told_in_one_error(
    reply: Any, told: str, endpoint: Callable[..., str], tiny_checkpoint: Path
) -> None:
    url = endpoint(lambda _: reply)
    student = StudentOnServers(tiny_checkpoint, [url], top_k=1, max_new_tokens=4, drawn=Sampling(1.0, 5))
    with pytest.raises(InputError, match=rf"{url}/update_weights_from_disk refused .*{told}.*on_policy\.urls"):
        student.load([url])
