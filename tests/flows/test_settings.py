"""Settings: file < environment < command line, and mistakes as one line."""

import os
import resource
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from flows import cli, settings
from flows.settings import Settings, SettingsError, load, result_changing, setting_keys
from flows.wiring import Places


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "redistill.toml"
    path.write_text('workspace = "here"\n[training]\nepochs = 2\nlearning_rate = 0.01\ntokens_per_step = 8\n')
    return path


def command_line(*argv: str) -> dict[str, object]:
    return cli.overrides(cli.parse(cli.parser("flows.retrain", ""), argv))


def test_each_source_overrides_the_one_before(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDISTILL_TRAINING__EPOCHS", "3")
    monkeypatch.setenv("REDISTILL_TRAINING__LEARNING_RATE", "0.02")
    chosen = load(config, command_line("--training.epochs", "4"))
    assert chosen.training.epochs == 4  # command line
    assert chosen.training.learning_rate == 0.02  # environment
    assert chosen.training.tokens_per_step == 8  # file
    assert chosen.training.seed == Settings().training.seed  # default


def test_a_list_is_written_with_commas_and_in_the_file_as_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "redistill.toml").write_text('[features]\nuse = ["topic", "response"]\n')
    assert load(tmp_path / "redistill.toml").features.use == ("topic", "response")
    monkeypatch.setenv("REDISTILL_FEATURES__USE", "topic, meta_*")
    assert result_changing(load(tmp_path / "redistill.toml"))["features.use"] == ["topic", "meta_*"]
    assert load(None, command_line("--features.use", "prompt_chars,topic")).features.use == ("prompt_chars", "topic")


def test_the_environment_can_name_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDISTILL_CONFIG", str(config))
    assert load().workspace == str(config.parent / "here")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[training]\nepoch = 2", ["training.epoch = 2", "redistill.toml", "the nearest is training.epochs"]),
        ("[trainng]\nepochs = 2", ["trainng", "redistill.toml", "the nearest is training"]),
        ('[training]\nepochs = "many"', ["training.epochs = 'many'", "redistill.toml", "valid number"]),
        ("[training]\nepochs = -1", ["training.epochs = -1", "redistill.toml", "greater than 0"]),
        ("[training]\nbatch_size = 64", ["training.batch_size = 64", "nearest is training.tokens_per_step"]),
        ("[training]\nmicro_batch_size = 64", ["training.micro_batch_size", "nearest is training.tokens_per_pass"]),
        ("[training]\nepochs = inf", ["training.epochs = inf", "redistill.toml", "finite"]),
        (
            "[traffic]\nheld_out_from = 85",
            ["traffic", "redistill.toml", "profile_until 80 is not above held_out_from 85"],
        ),
        ('[features]\nuse = ["topics"]', ["features.use = ['topics']", "redistill.toml", "the nearest is topic"]),
        (
            '[policy]\nnotify = "nonsense"',
            ["policy.notify = 'nonsense'", "redistill.toml", "TYPE/NAME", "slack-webhook/"],
        ),
        ('[reference]\nwindow = "last year"', ["reference.window = 'last year'", "redistill.toml"]),
        (
            '[teacher]\nbackend = "openai"\nurls = "http://x"\nserved_model = "big"',
            ["teacher.backend", "redistill.toml", "how likely", "training.divergence to none", "error_share to 0"],
        ),
        (
            '[teacher]\nbackend = "openai"\nurls = "http://x"\nserved_model = "big"\n[training]\ndivergence = "none"',
            ["mixture.error_share", "redistill.toml", "the teacher-error set", "set mixture.error_share to 0"],
        ),
        ("training = 3", ["training = 3", "redistill.toml"]),
        ("[training\nepochs = 2", ["redistill.toml", "cannot be read as TOML"]),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_key_value_and_file(tmp_path: Path, text: str, said: list[str]) -> None:
    path = tmp_path / "redistill.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        load(path)
    assert "\n" not in str(error.value)
    for part in said:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["REDISTILL_TRANING__EPOCHS", "REDISTILL_TRAINING__EPOCH", "REDISTILL_TRAINING", "redistill_traning__epochs"],
)
def test_a_mistake_in_the_environment_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "2")
    with pytest.raises(SettingsError, match=r"in the environment is no setting; the nearest is REDISTILL_TRAINING__"):
        load()


def test_a_mistake_on_the_command_line_names_the_nearest_option() -> None:
    with pytest.raises(SettingsError, match=r"--training\.epoch.*the nearest is --training\.epochs"):
        command_line("--training.epoch", "2")
    with pytest.raises(SettingsError, match=r"training\.epochs = 'x' in the command line"):
        load(None, command_line("--training.epochs", "x"))


def test_settings_that_do_not_go_together_are_all_named_with_where_they_were_set(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, message = "policy.triggers and drift.quality_floor", "performance is among the triggers, but"
    asked = command_line("--policy.triggers", "performance")
    with pytest.raises(SettingsError) as error:
        load(config, asked)
    assert str(error.value).startswith(f"{keys} in the command line: {message}")
    monkeypatch.setenv("REDISTILL_TRAINING__EPOCHS", "3")
    (tmp_path / "floor.toml").write_text("[drift]\nquality_floor = 0.0\n")
    with pytest.raises(SettingsError) as error:
        load(tmp_path / "floor.toml", asked)
    assert str(error.value).startswith(f"{keys} in the command line and {tmp_path / 'floor.toml'}: {message}")


ON_SERVERS = (
    "--training.mode", "on_policy", "--on_policy.sampler", "sglang", "--teacher.backend", "sglang",
    "--teacher.urls", "http://a:1",
)  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--training.divergence", "jensen_shannon", "--training.divergence_beta", "0"), "is 0 always"),
        (("--training.patience", "2"), "validation_share = 0 makes none"),
        (("--training.replicas", "2", "--training.processes", "3"), "cannot be divided among 2 replicas"),
        (("--training.attention_weight", "1"), "attention maps are not stored"),
        (("--training.temperature", "2"), "temperature 1 alone"),
        (("--teacher.backend", "sglang", "--teacher.serve", "true", "--teacher.urls", "http://a:1"), "asks no other"),
        (("--teacher.server_options", "--log-level 'warning"), "cannot be split into words"),
        (("--packaging.max_waiting", "4"), "max_prompts = 256 is more than max_waiting = 4"),
        (
            (*ON_SERVERS, "--on_policy.urls", "http://b:1,http://a:1/"),
            "http://a:1 would be given the student's weights",
        ),
    ],
)
def test_what_a_training_could_not_do_is_refused_before_the_teacher_is_paid(
    config: Path, given: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        load(config, command_line(*given))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        load("nowhere.toml")


def test_relative_folders_in_the_file_are_taken_from_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "models" / "large").mkdir(parents=True)
    text = 'workspace = "here"\n[teacher]\nmodel = "models/large"\n[student]\nbase = "owner/hub-name"\n'
    (tmp_path / "redistill.toml").write_text(text)
    chosen = load(tmp_path / "redistill.toml")
    assert chosen.workspace == str(tmp_path / "here")
    assert chosen.teacher.model == str(tmp_path / "models" / "large")
    assert chosen.student.base == "owner/hub-name"


def test_a_registry_file_is_the_same_wherever_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "redistill.toml").write_text('workspace = "here"\n[registry]\nuri = "sqlite:///models/mlflow.db"\n')
    monkeypatch.chdir("/")
    expected = f"sqlite:///{tmp_path}/models/mlflow.db"
    assert Places(load(tmp_path / "redistill.toml")).registry_uri == expected
    given = load(None, {"workspace": str(tmp_path / "here"), "registry": {"uri": "sqlite:///mlflow.db"}})
    assert Places(given).registry_uri == f"sqlite:///{tmp_path}/here/mlflow.db"


@pytest.mark.parametrize("key", ["workspace", "packaging.home"])
def test_a_url_where_a_folder_of_this_machine_is_needed_is_refused(key: str) -> None:
    *table, name = key.split(".")
    values: dict[str, Any] = {name: "s3://bucket/x"}
    with pytest.raises(SettingsError, match=f"{key} = 's3://bucket/x': this is a folder of this machine"):
        load(None, {table[0]: values} if table else values)


def test_a_file_without_a_workspace_is_an_error_and_no_demo(tmp_path: Path) -> None:
    (tmp_path / "redistill.toml").write_text("[training]\nepochs = 2\n")
    environment = {**os.environ, "REDISTILL_CONFIG": str(tmp_path / "redistill.toml")}
    command = [sys.executable, "-m", "flows.retrain"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, f"error: {settings.NO_WORKSPACE}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["redistill.toml"]


def test_an_api_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    command = [sys.executable, "-m", "flows.retrain", "--workspace", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "error: Failed to reach API at http://127.0.0.1:9/api" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError, match="MLFLOW_TRACKING_PASSWORD") as error:
        load(None, {"registry": {"uri": "http://user:secret@host/x"}})
    assert "secret" not in str(error.value)


def test_places_ports_and_time_limits_do_not_change_a_result() -> None:
    changing = set(result_changing(Settings()))
    places = {"workspace", "student.base", "teacher.model", "traffic.path", "registry.uri", "packaging.port"}
    places |= {"teacher.price_prompt", "teacher.price_answer", "teacher.currency", "teacher.metrics_file"}
    places |= {"judging.golden", "judging.lm_eval"}  # what they say is in the request, not what they are called
    assert not places & changing
    assert {"training.epochs", "judging.margin", "drift.psi_bound", "traffic.held_out_from", "features.use"} <= changing


def test_what_is_judged_by_lies_where_the_settings_file_lies(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("task: own")
    config = tmp_path / "redistill.toml"
    config.write_text('[judging]\ngolden = "golden.csv"\nlm_eval = ["own.yaml", "arc_easy"]\n')
    judging = load(config).judging
    assert judging.golden == str(tmp_path / "golden.csv")
    assert judging.lm_eval == (str(tmp_path / "own.yaml"), "arc_easy")


def test_every_setting_says_its_unit() -> None:
    for key, field in setting_keys():
        text = field.description or ""
        assert text.endswith("]") or "folder" in text or "START..END" in text or "empty:" in text, key


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *argv], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["flows.retrain", "flows.monitor", "flows.rollback"])
def test_help_lists_every_setting_with_its_default(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    for key, _ in setting_keys():
        assert f"--{key} " in done.stdout
    assert done.stdout.count("(default:") >= len(list(setting_keys()))


def test_help_waits_for_no_heavy_library() -> None:
    heavy = ("torch", "pandas", "transformers", "mlflow", "evidently", "bentoml")
    code = (
        "import sys, flows.retrain, flows.monitor, flows.rollback;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_help_takes_less_than_six_cpu_seconds() -> None:
    run("flows.retrain", "--help")  # the first one may compile bytecode

    def used() -> float:  # [CPU seconds], which other work on the machine does not stretch
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    seconds = []
    for _ in range(3):
        before = used()
        run("flows.retrain", "--help")
        seconds.append(used() - before)
    assert 0 < min(seconds) < 6  # most of them are Prefect; a busy machine takes up to twice as long


def test_bad_settings_exit_with_2_before_anything_is_started(tmp_path: Path) -> None:
    done = run("flows.retrain", "--workspace", str(tmp_path / "w"), "--training.epochs", "none")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "w").exists()
    done = run("flows.retrain", "--workspace", str(tmp_path / "w"), "--window", "2016-02-01..2016-01-01")
    assert done.returncode == 2
    assert "2016-02-01..2016-01-01" in done.stderr
    assert not (tmp_path / "w").exists()


def test_the_sections_are_the_packages_own() -> None:
    sections = [type(getattr(Settings(), name)) for name in Settings.model_fields if name != "workspace"]
    assert {section.__module__.split(".")[0] for section in sections} == {"monitoring", "distill", "deployments"}
    assert settings.Settings.model_config["extra"] == "forbid"


@pytest.mark.parametrize(
    ("flow", "options"),
    [
        ("rollback", ["--reason", "R\udcfcckfall"]),
        ("retrain", ["--approve", "r1", "--by", "M\udcfcller"]),
        ("retrain", ["--approve", "r1", "--note", "a\0b"]),
    ],
)
def test_words_for_the_registry_that_it_cannot_keep_are_refused_by_the_option(flow: str, options: list[str]) -> None:
    with pytest.raises(SettingsError, match=rf"argument {options[-2]}: what was given (is not UTF-8|holds a null)"):
        import_module(f"flows.{flow}").main(options)
