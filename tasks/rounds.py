"""On-policy training: the student answers, the teacher scores, the student learns, in rounds (distill.rounds.loop)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.logging import get_run_logger

from distill.obtained import Obtained
from distill.on_policy_settings import OnPolicySettings
from distill.request import TrainRequest
from distill.settings import TrainingSettings
from distill.signals import SignalStore
from tasks import costs, progress, purchases, teacher_metrics, teacher_server
from tasks.run import Run
from tasks.teaching import Teaching, api_key, scorer_of

if TYPE_CHECKING:
    from distill.rounds.answers import Sampler
    from distill.teachers.scored import Spoken


def settings_of(teaching: Teaching) -> dict[str, Any]:
    """Return the settings that the train stage's manifest has beside those of training."""
    return {"on_policy": teaching.on_policy.model_dump()} if teaching.training.mode == "on_policy" else {}


def check(training: TrainingSettings, policy: OnPolicySettings) -> None:
    """Raise InputError where a server would have to be started for the student and SGLang is not installed."""
    if training.mode == "on_policy" and policy.sampler == "sglang" and not policy.urls:
        teacher_server.check_installed("on_policy.sampler sglang without on_policy.urls")


def learn(run: Run, request: TrainRequest, teaching: Teaching, train: Callable[[Path], None]) -> dict[str, Any]:
    """Make the student of a request in rounds; returns what the stage's result says of them, with their cost."""
    from distill.prompts import load_tokenizer
    from distill.rounds import loop
    from distill.teachers.scored import scores_of

    scorer, store = scorer_of(teaching), SignalStore(teaching.signals)
    scorer.check(load_tokenizer(request.start), teaching.teacher.top_k)

    def score(rows: "Sequence[Spoken]", number: int) -> Obtained:
        with progress.bar("teacher: the student's answers", "answers") as shown:
            # A file a round: an answer that was given before was bought once, by the round that it came from.
            file = run.asked(f"train-{number}")
            with teacher_metrics.counting(teaching, scorer, lambda: purchases.paid(store, file), file) as ended:
                ended.append(purchases.fetch(store, scores_of(scorer, rows), file, shown))
            return ended[0]

    with (
        _sampler(run, teaching, Path(request.start)) as sampler,
        progress.bar("student: answers", "prompts") as shown,
    ):
        helpers = loop.Helpers(
            sampler,
            score,
            train,
            get_run_logger().info,
            shown,
            lambda found: costs.report(found, {}, teaching.teacher),
        )
        done = loop.learn(request, teaching.on_policy, helpers)
    return {"on_policy": loop.summed(done), "rounds": done, **_rows(done), **costs.of_rounds(done)}


def _rows(done: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what became of the rows of all rounds, each counted in every round that it was drawn for."""
    drawn = {name: sum(each["rows"][name] for each in done) for name in ("mixture", "training", "not_reached")}
    validation = done[-1]["rows"]["validation"]  # the same ones in all rounds
    drawn["mixture"] -= (len(done) - 1) * validation
    why = dict.fromkeys(each["not_reached_because"] for each in done if each["not_reached_because"])
    return {"rows": {**drawn, "validation": validation}, "not_reached_because": "; ".join(why)}


@contextmanager
def _sampler(run: Run, teaching: Teaching, start: Path) -> "Iterator[Sampler]":
    """Yield who samples the student; a server that is started for it is stopped afterwards."""
    if teaching.on_policy.sampler == "local":
        from distill.rounds.answers import in_process

        yield in_process(teaching.student, teaching.teacher)
        return
    from distill.rounds.student_servers import on_servers

    with ExitStack() as stack:
        key, held = api_key(teaching), teacher_server.Held(stack, run.folder, "student")

        def serve() -> Sequence[str]:
            return (held.url(str(start), teaching.teacher, teaching.on_policy.server_options, key),)

        yield on_servers(teaching.student, teaching.teacher, teaching.on_policy.urls or serve, api_key=key)
