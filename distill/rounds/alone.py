"""On-policy training in this process: student and teacher take turns in it, and nothing else is needed."""

from collections.abc import Callable, Sequence
from typing import Any

from distill.buying import fetch
from distill.obtained import Obtained
from distill.on_policy_settings import OnPolicySettings
from distill.request import TrainRequest
from distill.rounds import loop
from distill.rounds.answers import in_process
from distill.settings import StudentSettings
from distill.signals import SignalStore
from distill.teacher_settings import TeacherSettings
from distill.teachers.scored import Spoken, scores_of
from distill.teachers.scorers import scorer_of
from distill.trainer import train


def on_policy(
    student: StudentSettings,
    teacher: TeacherSettings,
    policy: OnPolicySettings | None = None,
    *,
    on_line: Callable[[str], None] = print,
) -> Callable[[TrainRequest], list[dict[str, Any]]]:
    """Return what trains a request of distill.prepare.prepare in rounds, and returns what came of each.

    It raises what distill.rounds.loop.learn raises.
    """

    def learn(request: TrainRequest) -> list[dict[str, Any]]:
        scorer, store = scorer_of(teacher), SignalStore(request.signals)

        def score(rows: Sequence[Spoken], number: int) -> Obtained:
            return fetch(store, scores_of(scorer, rows))

        sampler = in_process(student, teacher)
        helpers = loop.Helpers(sampler, score, lambda path: train(TrainRequest.load(path)), on_line)
        return loop.learn(request, policy or OnPolicySettings(), helpers)

    return learn
