"""SGLang servers that sample a student's answers: they are given its weights, and seen to have them, for each round.

    POST /update_weights_from_disk    folder and version -> the server has these weights from now on

Every answer carries the version, and after it the server is asked for folder and version (distill.teachers.sglang): one
from other weights than those that were loaded ends the asking, and is not kept.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from distill.errors import Failure, InputError
from distill.generation import Sampling
from distill.rounds.answers import Sampler
from distill.settings import StudentSettings
from distill.teacher_settings import TeacherSettings
from distill.teachers.chosen import API_KEY
from distill.teachers.protocol import AnySignal, Teacher
from distill.teachers.servers import HERE, Servers
from distill.teachers.sglang import SGLangTeacher
from distill.teachers.sglang_job import Job
from distill.teachers.sglang_weights import Weights

_CONNECT = 10.0  # seconds
_KEY = {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}


class StudentOnServers(SGLangTeacher):
    """The student `model`, which the servers are made to serve before they are asked.

    Answers are drawn by the servers' own generator: asked again they would be others, so that what has been answered is
    to be kept. Raises InputError where a server refuses the weights, and Failure where it has others when it answers.
    """

    def ask(
        self, prompts: Sequence[NDArray[np.int32]], progress: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple[int, AnySignal]]:
        """Yield (number of the prompt, its answer) as they come, each from a server with just these weights."""
        self._check(prompts)
        self.load(list(dict.fromkeys(self.urls() if callable(self.urls) else self.urls)))
        yield from super().ask(prompts, progress)

    @property
    def version(self) -> str:
        """Name of these weights on a server."""
        return f"student-{self.digest[:16]}"

    def load(self, urls: Sequence[str]) -> None:
        """Give the servers the student's weights."""
        key, seconds = self._limits["api_key"], float(self._limits["request_seconds"])
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        body = {"model_path": str(self.folder.absolute()), "weight_version": self.version}
        limit = httpx.Timeout(seconds, connect=_CONNECT)
        with httpx.Client(headers=headers, timeout=limit, mounts=HERE) as client:
            for url in urls:
                self._load(client, f"{url.rstrip('/')}/update_weights_from_disk", body)

    def _load(self, client: httpx.Client, url: str, body: dict[str, str]) -> None:
        try:
            response = client.post(url, json=body)
        except httpx.TransportError as error:
            raise Failure(f"{url} does not answer ({type(error).__name__} {error}): start the server again") from error
        if response.status_code in _KEY:
            raise InputError(f"{url} wants another API key: set the one that the server was started with, {API_KEY}")
        if not (response.is_success and _succeeded(response)):
            raise InputError(
                f"{url} refused the student's weights in {str(self.folder)!r} (HTTP {response.status_code} "
                f"{' '.join(response.text.split())[:300]}): the server has to serve a checkpoint of the same "
                "architecture, and to see the same files; on_policy.urls names SGLang servers and nothing else"
            )

    def _job(self, servers: Servers, ends: float) -> Job:
        job = super()._job(servers, ends)
        job.weights = Weights(str(self.folder.absolute()), self.version)  # what every answer is to come from
        return job


def _succeeded(response: httpx.Response) -> bool:
    """Return whether a server says that it has the weights; what is no reply of SGLang's says nothing."""
    try:
        said = response.json()
    except ValueError:
        return False
    return isinstance(said, dict) and bool(said.get("success"))


def on_servers(
    student: StudentSettings,
    teacher: TeacherSettings,
    urls: Sequence[str] | Callable[[], Sequence[str]],
    *,
    api_key: str = "",
) -> Sampler:
    """Return the sampler that asks these servers, within the limits of time that are set for the teacher's."""

    def sampler(checkpoint: Path, drawn: Sampling) -> Teacher:
        return StudentOnServers(
            checkpoint,
            urls,
            api_key=api_key or os.environ.get(API_KEY, ""),
            concurrency=teacher.concurrency,
            request_seconds=teacher.request_seconds,
            outage_seconds=teacher.outage_seconds,
            job_seconds=teacher.job_seconds or float("inf"),
            top_k=1,
            max_new_tokens=student.max_new_tokens,
            drawn=drawn,
        )

    return sampler
