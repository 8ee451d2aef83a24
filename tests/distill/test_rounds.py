"""On-policy training: what a round is made of, that a killed one goes on, and that it teaches."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distill import checkpoint, mixture
from distill.batches import Batches
from distill.buying import fetch
from distill.errors import Failure, InputError
from distill.generation import Sampling
from distill.loss.objective import Objective
from distill.models import load_model
from distill.obtained import Obtained
from distill.on_policy_settings import OnPolicySettings
from distill.prepare import prepare
from distill.prompts import encode, load_tokenizer
from distill.request import Part, TrainRequest
from distill.rounds import answers, loop, plan
from distill.settings import StudentSettings, TrainingSettings
from distill.signals import SignalStore
from distill.teacher_settings import TeacherSettings
from distill.teachers.local import LocalTeacher
from distill.teachers.local_scores import LocalScores
from distill.teachers.protocol import HiddenSignal, Signal
from distill.teachers.scored import Spoken, scores_of
from distill.training import outcome, states

NEW, K = 6, 8
PROMPTS = [f"the printer {n % 24} does not print" + " any more" * (n % 3) for n in range(24)]
STUDENT = StudentSettings(max_prompt_tokens=96, max_new_tokens=NEW)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, checkpoint_maker: Callable[..., Path]) -> Path:
    """Return a teacher that is another model than the student, with its tokenizer."""
    return checkpoint_maker(tmp_path_factory.mktemp("rounds") / "teacher", seed=3)


@pytest.fixture(scope="module")
def asked(
    teacher: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[TrainRequest, OnPolicySettings]]:
    """Return asked(output, policy={...}, **training) -> the request of an on-policy training, of its own signals."""

    def make(
        output: Path, policy: dict[str, Any] | None = None, **changes: Any
    ) -> tuple[TrainRequest, OnPolicySettings]:
        few = {"tokens_per_step": 150, "warmup_steps": 1, "checkpoint_steps": 2, "epochs": 2.0, "learning_rate": 5e-3}
        training = TrainingSettings.model_validate({"mode": "on_policy", "device": "cpu", **few, **changes})
        request = prepare(
            PROMPTS,
            student=STUDENT.model_copy(update={"base": str(tiny_checkpoint)}),
            teacher=TeacherSettings(model=str(teacher), top_k=K, device="cpu"),
            training=training,
            output=output,
            on_line=lambda line: None,
        )
        return request, OnPolicySettings.model_validate({"rounds": 3, "share": 0.5, **(policy or {})})

    return make


def helpers(request: TrainRequest, teacher: Path, **changes: Any) -> loop.Helpers:
    from distill.trainer import train

    scorer, store = LocalScores(teacher, top_k=K, max_new_tokens=1, device="cpu"), SignalStore(request.signals)

    def score(rows: Sequence[Spoken], number: int) -> Obtained:
        return fetch(store, scores_of(scorer, rows), flush_rows=3)

    made = loop.Helpers(
        sampler=answers.in_process(STUDENT, TeacherSettings(device="cpu")),
        score=score,
        train=lambda path: train(TrainRequest.load(path)),
        told=lambda line: None,
    )
    return replace(made, **changes)


def records(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


class TestPlan:
    def test_rounds_share_the_steps_and_take_each_row_as_often_as_off_policy_does(self) -> None:
        for epochs, rounds in ((2.0, 3), (3.0, 3), (0.5, 2), (1.0, 4)):
            made = plan.rounds_of(101, epochs, rounds, 0.5, np.arange(7, 47), seed=1)
            assert [each.first for each in made[1:]] == [each.last for each in made[:-1]]
            assert (made[0].first, made[-1].last) == (0, 101)
            taken = np.bincount(np.concatenate([each.rows for each in made]), minlength=47)
            passes = 1 if epochs / rounds >= 1 else epochs  # else a round makes several passes over all rows itself
            if epochs / rounds < 1:
                assert abs(taken[7:].mean() - passes) < 0.1
                assert taken[7:].max() - taken[7:].min() <= 2
            else:
                assert (taken[7:] == rounds).all()
            assert not taken[:7].any()

    def test_the_student_answers_the_share_that_is_set_and_others_each_round(self) -> None:
        made = plan.rounds_of(40, 4.0, 4, 0.25, np.arange(80), seed=1)
        assert [int(each.own.sum()) for each in made] == [20] * 4
        assert len({tuple(each.rows[each.own]) for each in made}) == 4
        again = plan.rounds_of(40, 4.0, 4, 0.25, np.arange(80), seed=1)
        assert all((one.own == other.own).all() for one, other in zip(made, again, strict=True))

    def test_fewer_steps_than_rounds_make_fewer_rounds(self) -> None:
        assert [each.last for each in plan.rounds_of(2, 1.0, 5, 0.5, np.arange(9), seed=0)] == [1, 2]


class TestSampling:
    def test_an_answer_is_a_function_of_checkpoint_seed_and_prompt_alone(self, tiny_checkpoint: Path) -> None:
        prompts = [np.arange(4, 8 + n, dtype=np.int32) for n in range(9)]

        def drawn(seed: int, rows: Sequence[int], batch: int) -> list[list[int]]:
            sampler = LocalTeacher(
                tiny_checkpoint, top_k=1, max_new_tokens=NEW, batch_size=batch, device="cpu", drawn=Sampling(1.0, seed)
            )
            found = dict(sampler.ask([prompts[row] for row in rows]))
            return [found[at].answer.tolist() for at in range(len(rows))]

        whole = drawn(7, range(9), 4)
        assert drawn(7, range(9), 9) == whole
        assert drawn(7, [8, 2], 1) == [whole[8], whole[2]]
        assert drawn(8, range(9), 4) != whole

    def test_each_round_draws_with_another_seed(self) -> None:
        assert len({plan.seed_of(seed, number) for seed in range(5) for number in range(9)}) == 45

    def test_empty_and_cut_answers_are_counted(self) -> None:
        said = answers.described([np.array(a, np.int32) for a in ([1], [5, 1], [5, 6, 7], [2])], stops=[1])
        assert (said.rows, said.tokens, said.empty, said.cut) == (4, 7, 1, 2)
        assert said.mean_tokens == 7 / 4


class TestLoss:
    """Two rows of 3 and 4 answer tokens; the second is the student's own."""

    @pytest.fixture
    def batch_and_student(self, tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., tuple[Any, Any]]:
        rng = np.random.default_rng(0)
        keys, prompts = [bytes([n]) * 32 for n in range(2)], [rng.integers(4, 300, 5, dtype=np.int32) for _ in range(2)]
        store, table = SignalStore(tmp_path / "signals"), np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)
        for n, tokens in enumerate((3, 4)):
            ids = np.stack([rng.choice(300, 4, replace=False) for _ in range(tokens)]).astype(np.int32)
            probabilities = np.tile(np.float32([0.5, 0.2, 0.1, 0.1]), (tokens, 1))
            signal = Signal(ids[:, 0].copy(), ids, np.log(probabilities).astype(np.float16), np.full(tokens, 0.1, "f4"))
            store.put([(keys[n], 5, signal)])

        def made(own: list[bool] | None) -> tuple[Any, Any]:
            mixture.save(tmp_path / "m", prompts, table, own=None if own is None else np.array(own))
            batches = Batches(
                mixture.load(tmp_path / "m"), store, tokens_per_step=99, tokens_per_pass=99, layout="packed", width=32,
                pad=0, seed=0,
            )  # fmt: skip
            return batches.step(0).passes[0], load_model(tiny_checkpoint, "cpu")

        return made

    def parts(self, made: tuple[Any, Any], own: Any, **changes: Any) -> tuple[NDArray[np.float64], torch.Tensor]:
        settings = TrainingSettings.model_validate({"prompt_weight": 0.0, "cross_entropy_weight": 1.0, **changes})
        batch, student = made
        loss, parts = Objective(student, settings, "packed", None, own)(batch)
        loss.backward()
        return parts.numpy(), student.get_output_embeddings().weight.grad.clone()

    def test_the_students_own_tokens_have_no_cross_entropy(
        self, batch_and_student: Callable[..., tuple[Any, Any]]
    ) -> None:
        none, some, whole = (
            self.parts(batch_and_student(own), "forward_kl")[0] for own in ([False] * 2, [False, True], [True] * 2)
        )
        assert none[1] > some[1] > whole[1] == 0
        assert none[0] == pytest.approx(some[0]) == pytest.approx(whole[0])  # as the divergence is the same on both
        alone = self.parts(batch_and_student([False, True]), "forward_kl", cross_entropy_weight=0.0)
        both = self.parts(batch_and_student([True] * 2), "forward_kl")
        torch.testing.assert_close(alone[1], both[1])

    def test_they_have_a_divergence_of_their_own(self, batch_and_student: Callable[..., tuple[Any, Any]]) -> None:
        given = {"cross_entropy_weight": 0.0}
        forward, reverse = (
            self.parts(batch_and_student(None), None, divergence=kind, **given) for kind in ("forward_kl", "reverse_kl")
        )
        mixed = self.parts(batch_and_student([True] * 2), "reverse_kl", divergence="forward_kl", **given)
        torch.testing.assert_close(mixed[1], reverse[1])
        between = self.parts(batch_and_student([False, True]), "reverse_kl", divergence="forward_kl", **given)[0][0]
        assert min(forward[0][0], reverse[0][0]) < between < max(forward[0][0], reverse[0][0])


@pytest.fixture(scope="module")
def whole(
    asked: Callable[..., tuple[TrainRequest, OnPolicySettings]], teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainRequest, list[dict[str, Any]]]:
    """Return a training in three rounds, and what came of each."""
    request, policy = asked(tmp_path_factory.mktemp("whole") / "t")
    return request, loop.learn(request, policy, helpers(request, teacher))


class TestRounds:
    def test_weights_moments_and_learning_rate_go_on_through_all_rounds(
        self, whole: tuple[TrainRequest, list[dict[str, Any]]], asked: Callable[..., Any], tmp_path: Path
    ) -> None:
        from distill.trainer import train

        request, done = whole
        output = Path(request.output)
        off, _ = asked(tmp_path / "off", mode="off_policy")
        train(off)
        ours, theirs = records(output), records(tmp_path / "off")
        assert [record["step"] for record in ours] == [record["step"] for record in theirs]
        assert [record["learning_rate"] for record in ours] == [record["learning_rate"] for record in theirs]
        assert len(done) == 3
        assert done[-1]["last_step"] == len(ours)
        assert sorted(path.name for path in (output / "checkpoints").glob("step-*"))[-1] == states.name_of(len(ours))
        checkpoint.check(output / "student")
        assert outcome.read(output)["steps"] == len(ours)

    def test_what_was_sampled_scored_and_learned_is_said(
        self, whole: tuple[TrainRequest, list[dict[str, Any]]]
    ) -> None:
        summed = loop.summed(whole[1])
        assert summed["own_rows"] == sum(each["own"]["rows"] for each in whole[1]) > 0
        assert summed["own_rows"] + summed["logged_rows"] == sum(each["rows"]["mixture"] for each in whole[1])
        assert summed["bought_rows"] + summed["reused_rows"] == summed["own_rows"]
        assert summed["scored_tokens"] > summed["own_tokens"] > 0
        assert 0 < summed["mean_tokens"] <= NEW
        assert 0 <= summed["empty_share"] <= summed["cut_share"] + summed["empty_share"] <= 1

    def test_the_answers_of_a_round_are_those_of_the_student_of_the_round_before(
        self, whole: tuple[TrainRequest, list[dict[str, Any]]], tiny_checkpoint: Path
    ) -> None:
        request, _ = whole
        first = mixture.load(Path(request.output) / "round-1" / "mixture.safetensors")
        assert first.own is not None
        own = np.flatnonzero(first.own)
        drawn = Sampling(1.0, plan.seed_of(request.settings.seed, 1))
        sampler = LocalTeacher(tiny_checkpoint, top_k=1, max_new_tokens=NEW, device="cpu", drawn=drawn)
        said = dict(sampler.ask([first.prompt(int(row)) for row in own]))
        store = SignalStore(request.signals)
        for at, row in enumerate(own):
            assert store.get(first.keys[row].tobytes()).answer.tolist() == said[at].answer.tolist()

    @pytest.mark.parametrize("killed_in", ["scoring", "training"])
    def test_a_training_killed_within_a_round_buys_the_rest_alone_and_makes_the_same_student(
        self,
        killed_in: str,
        whole: tuple[TrainRequest, list[dict[str, Any]]],
        asked: Callable[..., tuple[TrainRequest, OnPolicySettings]],
        teacher: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        request, policy = asked(tmp_path / "t")
        score, saved, stop = LocalScores.score, states.save, KeyboardInterrupt

        def scores_five(self: LocalScores, rows: Sequence[Spoken], progress: Any = None) -> Any:
            for count, found in enumerate(score(self, rows, progress)):
                if count == 5:
                    raise stop
                yield found

        def saves_one_of_round_2(folder: Path, state: Any, progress: Any, *, keep: int) -> None:
            saved(folder, state, progress, keep=keep)
            if progress.step > whole[1][0]["last_step"]:
                raise stop

        with monkeypatch.context() as patched:
            if killed_in == "scoring":
                patched.setattr(LocalScores, "score", scores_five)
            else:
                patched.setattr(states, "save", saves_one_of_round_2)
            with pytest.raises(stop):
                loop.learn(request, policy, helpers(request, teacher))
        before = len(SignalStore(request.signals))
        done = loop.learn(request, policy, helpers(request, teacher))
        bought = len(SignalStore(request.signals)) - before
        all_bought = sum(each["bought_rows"] for each in whole[1])
        assert before == len(PROMPTS) + all_bought - bought
        if killed_in == "scoring":
            assert 0 < all_bought - bought < whole[1][0]["bought_rows"]
        assert checkpoint.digest(tmp_path / "t" / "student") == checkpoint.digest(Path(whole[0].output) / "student")
        assert [each["own"] for each in done] == [each["own"] for each in whole[1]]
        if killed_in == "training":
            assert [each["bought_rows"] for each in done] == [each["bought_rows"] for each in whole[1]]
        assert [r["loss"] for r in records(tmp_path / "t")] == [r["loss"] for r in records(Path(whole[0].output))]

    def test_a_script_that_was_killed_does_the_same_again_and_goes_on(
        self, asked: Callable[..., tuple[TrainRequest, OnPolicySettings]], teacher: Path, tmp_path: Path
    ) -> None:
        request, policy = asked(tmp_path / "t")
        ended: list[Path] = []

        def one_round(path: Path) -> None:
            from distill.trainer import train

            if ended:
                raise KeyboardInterrupt
            train(TrainRequest.load(path))
            ended.append(path)

        with pytest.raises(KeyboardInterrupt):
            loop.learn(request, policy, helpers(request, teacher, train=one_round))
        again, _ = asked(tmp_path / "t")
        assert again == request
        made = mixture.load(Path(request.mixture))
        rows, turned = range(len(made)), made.keys[::-1].copy()  # as long as before, so that there are as many steps
        mixture.save(tmp_path / "other", [made.prompt(row) for row in rows][::-1], turned)
        other = replace(request, mixture=str(tmp_path / "other"))
        with pytest.raises(InputError, match=r"states of another training \(other mixture\)"):
            loop.learn(other, policy, helpers(other, teacher))
        with pytest.raises(InputError, match=r"states of another training \(other settings\)"):
            asked(tmp_path / "t", seed=1)
        assert [each["round"] for each in loop.learn(again, policy, helpers(again, teacher))] == [1, 2, 3]

    def test_a_finished_training_is_not_done_again(
        self, whole: tuple[TrainRequest, list[dict[str, Any]]], teacher: Path
    ) -> None:
        def never(path: Path) -> None:
            raise AssertionError(path)

        left = Path(whole[0].output) / "round-1" / "student"
        left.mkdir()  # as when it was killed between two rounds
        again = loop.learn(whole[0], OnPolicySettings(rounds=3, share=0.5), helpers(whole[0], teacher, train=never))
        assert again == whole[1]
        assert not left.exists()
        with pytest.raises(InputError, match="rounds of other settings"):
            loop.learn(whole[0], OnPolicySettings(rounds=3, share=0.4), helpers(whole[0], teacher, train=never))

    def test_it_goes_on_with_other_servers_and_from_rounds_of_a_version_with_fewer_settings(
        self, whole: tuple[TrainRequest, list[dict[str, Any]]], teacher: Path
    ) -> None:
        def again(**changes: Any) -> list[dict[str, Any]]:
            settings = OnPolicySettings.model_validate({"rounds": 3, "share": 0.5, **changes})
            return loop.learn(whole[0], settings, helpers(whole[0], teacher))

        elsewhere = {"urls": "http://127.0.0.1:1", "server_options": "--mem-fraction-static 0.4"}
        assert again(**elsewhere) == whole[1]
        assert again() == whole[1]
        path = Path(whole[0].output) / "rounds.json"
        older = json.loads(path.read_text())
        del older["temperature"]
        path.write_text(json.dumps({**older, "urls": ["http://127.0.0.1:2"]}))
        with pytest.raises(InputError, match=r"on_policy: temperature 1\.0, now 0\.5\)"):
            again(temperature=0.5)
        assert again() == whole[1]

    def test_validation_is_over_the_same_rows_of_the_teachers_in_all_rounds_and_the_best_of_all_is_exported(
        self, asked: Callable[..., tuple[TrainRequest, OnPolicySettings]], teacher: Path, tmp_path: Path
    ) -> None:
        request, policy = asked(tmp_path / "t", validation_share=0.2, validation_steps=1)
        loop.learn(request, policy, helpers(request, teacher))
        held = []
        for number in (1, 2, 3):
            rows = mixture.load(tmp_path / "t" / f"round-{number}" / "mixture.safetensors")
            assert rows.held is not None
            assert rows.own is not None
            assert not (rows.held & rows.own).any()
            held.append({key.tobytes() for key in rows.keys[rows.held]})
            assert not held[-1] & {key.tobytes() for key in rows.keys[~rows.held]}
        assert held[0] == held[1] == held[2] != set()
        seen = {record["step"]: record["validation_loss"] for record in records(tmp_path / "t")}
        ended = outcome.read(tmp_path / "t")
        assert ended["validation_loss"] == min(seen.values())
        assert ended["exported_step"] == min(seen, key=lambda step: (seen[step], step))

    def test_a_training_that_no_longer_gets_better_ends_in_its_round(
        self, asked: Callable[..., tuple[TrainRequest, OnPolicySettings]], teacher: Path, tmp_path: Path
    ) -> None:
        hopeless = {"learning_rate": 1e-12, "weight_decay": 0.9, "validation_share": 0.2, "validation_steps": 1}
        request, policy = asked(tmp_path / "t", patience=1, **hopeless)
        request = replace(request, learning_rate=0.5)  # it only gets worse
        done = loop.learn(request, policy, helpers(request, teacher))
        assert done[-1]["stopped_early"]
        assert len(records(tmp_path / "t")) == outcome.read(tmp_path / "t")["steps"]
        checkpoint.check(tmp_path / "t" / "student")

    def test_a_part_that_does_not_follow_the_state_is_refused(
        self, whole: tuple[TrainRequest, list[dict[str, Any]]], tmp_path: Path
    ) -> None:
        from distill.trainer import train

        request = whole[0]
        part = Part(4, 6, 9, str(tmp_path), "reverse_kl")
        with pytest.raises(
            InputError, match=r"state after step 0, but this part of the training goes from step 4 to 6"
        ):
            train(replace(request, output=str(tmp_path / "round-2"), part=part))
        with pytest.raises(InputError, match="a training in rounds"):
            train(request)

    def test_other_rows_within_a_part_are_another_training(
        self, whole: tuple[TrainRequest, list[dict[str, Any]]], tmp_path: Path
    ) -> None:
        from distill.trainer import train

        copied = tmp_path / "t"
        shutil.copytree(whole[0].output, copied)
        request = TrainRequest.load(copied / "round-3" / "request.json")
        assert request.part is not None
        other = replace(
            request,
            mixture=str(copied / "round-1" / "mixture.safetensors"),
            output=str(copied / "round-3"),
            part=replace(request.part, states=str(copied)),
        )
        with pytest.raises(InputError, match="states of another training \\(other mixture\\)"):
            train(other)

    def test_a_loss_that_is_no_number_stops_a_round_and_its_rows_are_named(
        self,
        asked: Callable[..., tuple[TrainRequest, OnPolicySettings]],
        teacher: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        request, policy = asked(tmp_path / "t")
        forward = Objective.forward

        def broken(self: Objective, batch: Any) -> Any:
            loss, parts = forward(self, batch)
            return (loss * float("nan"), parts * float("nan")) if batch.own.any() else (loss, parts)

        monkeypatch.setattr(Objective, "forward", broken)
        with pytest.raises(Failure, match="was not taken: the loss is nan"):
            loop.learn(request, policy, helpers(request, teacher))
        assert json.loads((tmp_path / "t" / "round-1" / "suspect_rows.json").read_text())["rows"]

    def test_a_student_that_its_rounds_last_step_has_spoiled_does_not_answer(
        self,
        asked: Callable[..., tuple[TrainRequest, OnPolicySettings]],
        teacher: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        request, policy = asked(tmp_path / "t", validation_share=0.2, validation_steps=100)
        step, taken = torch.optim.AdamW.step, list[int]()

        def spoils(self: torch.optim.AdamW, *given: Any) -> Any:
            step(self, *given)
            taken.append(1)
            if len(taken) == 3:  # the last of the first round
                for weight in self.param_groups[0]["params"]:
                    weight.data.mul_(float("nan"))

        monkeypatch.setattr(torch.optim.AdamW, "step", spoils)
        with pytest.raises(Failure, match=r"spoiled by its last step \(3\) and is not exported"):
            loop.learn(request, policy, helpers(request, teacher))
        assert not (tmp_path / "t" / "round-1" / "student").exists()

    def test_the_state_that_a_round_begins_from_is_not_to_be_deleted(
        self,
        asked: Callable[..., tuple[TrainRequest, OnPolicySettings]],
        teacher: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It was seen to be sound, and a round cannot go on from one before it."""
        request, policy = asked(tmp_path / "t")
        forward, broken = Objective.forward, list[bool]()

        def breaks(self: Objective, batch: Any) -> Any:
            loss, parts = forward(self, batch)
            return (loss * float("nan"), parts * float("nan")) if broken else (loss, parts)

        def train_one(path: Path) -> None:
            from distill.trainer import train

            train(TrainRequest.load(path))
            broken.append(True)

        monkeypatch.setattr(Objective, "forward", breaks)
        with pytest.raises(Failure, match=r"rate; the training state before it is unspoiled$"):
            loop.learn(request, policy, helpers(request, teacher, train=train_one))
        broken = []
        assert len(loop.learn(request, policy, helpers(request, teacher))) == 3

    def test_each_round_has_an_order_of_its_own(
        self,
        asked: Callable[..., tuple[TrainRequest, OnPolicySettings]],
        teacher: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A round of a pass and a half would else take the same half of the rows twice each time."""
        request, policy = asked(tmp_path / "t", {"rounds": 2}, epochs=3.0)
        seeds, step = list[int](), Batches.step

        def noted(self: Batches, number: int) -> Any:
            seeds.append(self.order.seed)
            return step(self, number)

        monkeypatch.setattr(Batches, "step", noted)
        loop.learn(request, policy, helpers(request, teacher))
        assert len(set(seeds)) == 2


class TestIdentity:
    def test_an_off_policy_request_has_the_identity_that_it_had_before_there_were_rounds(self) -> None:
        settings = TrainingSettings()
        request = TrainRequest("s", "m", "t", "o", epochs=1.0, learning_rate=1e-3, settings=settings)
        import hashlib

        fields = type(settings).model_fields
        # Places, and what came later and is not set, are marked.
        kept = {
            name: value
            for name, value in settings.model_dump(mode="json").items()
            if not fields[name].json_schema_extra
        }
        asked = {"epochs": 1.0, "learning_rate": 1e-3, "teacher_sha256": "", "settings": kept}
        assert request.digest() == hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        on_policy = replace(request, settings=TrainingSettings(mode="on_policy"))
        parts = [replace(on_policy, part=Part(0, last, 9, "here", "reverse_kl")) for last in (3, 4)]
        elsewhere = replace(on_policy, part=Part(0, 3, 9, "there", "reverse_kl"))
        assert len({request.digest(), on_policy.digest(), *(part.digest() for part in parts)}) == 4
        assert elsewhere.digest() == parts[0].digest()


def test_a_short_on_policy_run_brings_the_student_closer_to_the_teacher_on_prompts_it_has_not_seen(
    asked: Callable[..., tuple[TrainRequest, OnPolicySettings]], teacher: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    prompts = encode(load_tokenizer(teacher), [f"the printer {n} does not print" for n in range(100, 140)], 96).ids

    def surprise(student: Path) -> float:
        """Return the mean surprise of the teacher at what the student says [nats/token]."""
        said = dict(LocalTeacher(student, top_k=1, max_new_tokens=NEW, device="cpu").ask(prompts))
        rows = [Spoken(prompt, said[at].answer) for at, prompt in enumerate(prompts)]
        scorer = LocalScores(teacher, top_k=1, max_new_tokens=1, device="cpu", signals_format="hidden:bf16")
        found = [signal for _, signal in scorer.score(rows)]
        return -float(np.mean(np.concatenate([s.logprobs for s in found if isinstance(s, HiddenSignal)]), dtype=float))

    request, policy = asked(tmp_path / "t", epochs=12.0, learning_rate=2e-2)
    loop.learn(request, policy, helpers(request, teacher))
    before, after = surprise(tiny_checkpoint), surprise(tmp_path / "t" / "student")
    assert after < 0.8 * before, (before, after)
