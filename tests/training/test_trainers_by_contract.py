"""Any program that keeps the contract is a trainer: it trains, it answers, and it ends with whoever started it."""

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest import Settings
from ingest.errors import ModelMissing, TrainingFailed
from tds_dagster.training import contract
from tds_dagster.training.contract import (
    Figures,
    Prediction,
    Predictor,
    open_predictor,
    run_in_subprocess,
    run_trainer,
    trainer_command,
    trainer_name,
)
from tests.parts import PROJECT, environment, wait_until

# A trainer in another language, with nothing of ours: it has "learned" how many lines train has.
SHELL = """#!/bin/sh
if [ "$1" = --predict ]; then
    while read -r question; do
        echo "{\\"prediction\\": \\"$(cat "$2/lines")\\", \\"score\\": null}"
    done
else
    echo "reading $1"
    wc -l < "$1/train.jsonl" > "$2/lines"
    echo "it has $(cat "$2/lines") lines" >&2
fi
"""


def settings_with(tmp_path: Path, script: str, *, name: str = "my trainer.sh") -> Settings:
    """Settings whose trainer is this script, beside a dataset's folder and an output folder."""
    path = tmp_path / name
    path.write_text(script)
    path.chmod(0o700)
    (tmp_path / "dataset").mkdir(exist_ok=True)
    (tmp_path / "dataset" / "train.jsonl").write_text("{}\n{}\n{}\n")
    (tmp_path / "output").mkdir(exist_ok=True)
    runner = [sys.executable] if name.endswith(".py") else []
    return Settings(data_dir=tmp_path / "data", trainer=shlex.join([*runner, str(path)]))


def python_trainer(tmp_path: Path, train: str = "pass", predict: str = "('x', 0.5)") -> Settings:
    """A trainer by `run_trainer`: the statement that trains, and the expression that answers `question`."""
    script = (
        "from pathlib import Path\nfrom tds_dagster.training.contract import run_trainer\n"
        f"def train(dataset, output, report):\n    {train}\n"
        f"def predict(output):\n    return lambda question: {predict}\n"
        "run_trainer(train, predict)\n"
    )
    return settings_with(tmp_path, script, name="trainer.py")


def predictor_of(settings: Settings, tmp_path: Path) -> Predictor:
    return open_predictor(settings, "tool_selection", tmp_path / "output", trainer_name(settings))


def test_a_trainer_in_another_language_needs_nothing_of_ours(tmp_path: Path) -> None:
    settings, told = settings_with(tmp_path, SHELL), list[str]()
    run_in_subprocess(settings, tmp_path / "dataset", tmp_path / "output", lambda line, _figures: told.append(line))
    assert told == [f"reading {tmp_path / 'dataset'}", "it has 3 lines"]
    with predictor_of(settings, tmp_path) as predictor:
        assert list(predictor.predict([{"a": 1}, {"b": "ü\n"}])) == [Prediction("3"), Prediction("3")]


def test_a_trainer_of_two_functions_trains_and_answers(tmp_path: Path) -> None:
    settings, told = python_trainer(
        tmp_path,
        train="(output / 'word').write_text('learned'); report('epoch 1', {'loss': 0.25, 'rows': 3})",
        predict="((output / 'word').read_text() + question['end'], 0.75)",
    ), list[str]()  # fmt: skip
    run_in_subprocess(settings, tmp_path / "dataset", tmp_path / "output", lambda line, _figures: told.append(line))
    assert told == ["epoch 1: loss 0.25, rows 3"]
    with predictor_of(settings, tmp_path) as predictor:
        assert list(predictor.predict([{"end": "!"}])) == [Prediction("learned!", 0.75)]


def test_each_question_is_answered_before_the_next_one_is_asked(tmp_path: Path) -> None:
    settings, answered = settings_with(tmp_path, SHELL), list[Prediction]()
    (tmp_path / "output" / "lines").write_text("x")

    def questions() -> Iterator[dict[str, object]]:
        for n in range(3):
            assert len(answered) == n
            yield {"n": n}

    with predictor_of(settings, tmp_path) as predictor:
        for prediction in predictor.predict(questions()):
            answered.append(prediction)


def test_a_process_with_thousands_of_open_files_gets_its_answers(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, SHELL)
    run_in_subprocess(settings, tmp_path / "dataset", tmp_path / "output")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with predictor_of(settings, tmp_path) as predictor:
            assert [answer.prediction for answer in predictor.predict([{}])] == ["3"]
    finally:
        for handle in opened:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_what_a_trainer_prints_while_it_answers_is_no_answer(tmp_path: Path) -> None:
    settings = python_trainer(tmp_path, predict="(print('loading weights'), ('x', None))[1]")
    with predictor_of(settings, tmp_path) as predictor:
        assert list(predictor.predict([{}, {}])) == [Prediction("x"), Prediction("x")]


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo step 1; echo no memory left >&2; exit 3", "ended with exit code 3, expected 0.*\n  step 1\n  no memory"),
        ("kill -9 $$", "was ended by signal 9.*It wrote no log"),
    ],
)
def test_a_trainer_that_ends_badly_fails_with_the_end_of_its_log(tmp_path: Path, script: str, problem: str) -> None:
    settings = settings_with(tmp_path, f"#!/bin/sh\n{script}\n")
    with pytest.raises(TrainingFailed, match=f"(?s){problem}"):
        run_in_subprocess(settings, tmp_path / "dataset", tmp_path / "output")


def test_a_trainer_that_is_no_program_fails_naming_it(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, trainer="/nowhere/train --fast")
    with pytest.raises(TrainingFailed, match="/nowhere/train: No such file or directory: expected a program; correct"):
        run_in_subprocess(settings, tmp_path, tmp_path)


def test_an_error_on_purpose_is_told_without_a_traceback(tmp_path: Path) -> None:
    settings = python_trainer(
        tmp_path, "from ingest.errors import TrainingFailed; raise TrainingFailed('too few rows')"
    )
    with pytest.raises(TrainingFailed, match="too few rows") as caught:
        run_in_subprocess(settings, tmp_path / "dataset", tmp_path / "output")
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("read -r q; echo maybe; read -r q", "it answered 'maybe'"),
        ("read -r q; echo '{\"prediction\": 7}'; read -r q", "it answered"),
        ('read -r q; echo \'{"prediction": "x", "score": 1.5}\'; read -r q', "the score 1.5, expected 0 to 1 or null"),
        ('read -r q; printf \'{"prediction": "\\377"}\\n\'; read -r q', "it answered"),
        ("read -r q; echo broken >&2", "(?s)it ended without an answer.*\n  broken"),
        ("read -r q; read -r q", "no answer within"),
    ],
)
def test_a_wrong_answer_or_none_is_an_error_that_says_what_was_expected(
    tmp_path: Path, script: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract, "ANSWER_TIMEOUT_S", 0.3 if problem.startswith("no answer") else 30)
    settings = settings_with(tmp_path, f"#!/bin/sh\n{script}\n")
    with predictor_of(settings, tmp_path) as predictor, pytest.raises(TrainingFailed, match=problem):
        list(predictor.predict([{"n": 1}]))


@pytest.mark.parametrize("size", [100, 1 << 20])
def test_a_trainer_that_reads_nothing_is_waited_for_no_longer_than_for_an_answer(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract, "ANSWER_TIMEOUT_S", 0.5)
    monkeypatch.setattr(contract, "_END_TIMEOUT_S", 0.5)
    settings = settings_with(tmp_path, "#!/bin/sh\nexec sleep 60\n")
    with predictor_of(settings, tmp_path) as predictor, pytest.raises(TrainingFailed, match="no answer within"):
        list(predictor.predict([{"text": "x" * size}]))


def test_a_question_larger_than_a_pipe_is_asked_and_answered(tmp_path: Path) -> None:
    settings = python_trainer(tmp_path, predict="(question['text'][-3:] + str(len(question['text'])), 0.5)")
    with predictor_of(settings, tmp_path) as predictor:
        answers = [each.prediction for each in predictor.predict([{"text": "x" * 3_000_000 + "end"}, {"text": "abc"}])]
    assert answers == ["end3000003", "abc3"]


def test_a_predictor_ends_with_its_owner(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = (
        f"#!/bin/sh\necho $$ > {shlex.quote(str(pid))}.new; mv {shlex.quote(str(pid))}.new {shlex.quote(str(pid))}\n"
    )
    settings = settings_with(tmp_path, script + "exec sleep 60\n")
    code = (
        "import os\nfrom pathlib import Path; from ingest.settings import read_settings\n"
        "from tds_dagster.training.contract import open_predictor\n"
        "settings = read_settings()\n"
        f"open_predictor(settings, 'tool_selection', Path({str(tmp_path / 'output')!r}), settings.trainer)\n"
        "import time; time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, env=environment(settings))
    wait_until(pid.exists, "the predictor is there")
    owner.kill()
    owner.wait()
    wait_until(lambda: not is_alive(int(pid.read_text())), "the predictor has ended")


def test_a_model_is_asked_by_the_trainer_that_made_it_and_by_no_other(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, SHELL)
    with pytest.raises(ModelMissing, match=r"made by the trainer 'python mine.py'.*set TDS_TRAINER='python mine.py'"):
        open_predictor(settings, "tool_selection", tmp_path / "output", "python mine.py")
    with pytest.raises(ModelMissing, match="train one with `tds train tool_selection`"):
        open_predictor(settings, "tool_selection", tmp_path / "absent", trainer_name(settings))
    assert trainer_name(Settings()) == "default"


def test_a_predictor_is_gone_when_it_is_closed(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, f"#!/bin/sh\necho $$ > {shlex.quote(str(tmp_path / 'pid'))}\n" + SHELL)
    (tmp_path / "output" / "lines").write_text("x")
    predictor = predictor_of(settings, tmp_path)
    list(predictor.predict([{}]))
    pid = int((tmp_path / "pid").read_text())
    predictor.close()
    predictor.close()
    assert not is_alive(pid)


def test_a_training_ends_with_its_owner_and_takes_along_what_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"#!/bin/sh\nsleep 60 & echo $$ $! > {shlex.quote(str(pids))}.new; mv {shlex.quote(str(pids))}.new "
    settings = settings_with(tmp_path, f"{script}{shlex.quote(str(pids))}; wait\n")
    code = (
        "from pathlib import Path; from ingest.settings import read_settings\n"
        "from tds_dagster.training.contract import run_in_subprocess\n"
        f"run_in_subprocess(read_settings(), Path({str(tmp_path)!r}), Path({str(tmp_path)!r}))"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], env=environment(settings), cwd=PROJECT)
    wait_until(pids.exists, "the trainer has started")
    trainer, started = map(int, pids.read_text().split())
    assert is_alive(trainer)
    assert is_alive(started)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    wait_until(lambda: not is_alive(trainer) and not is_alive(started), "both are gone")


def test_a_training_that_is_asked_to_end_ends_and_says_by_what(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    settings = settings_with(tmp_path, f"#!/bin/sh\ntouch {shlex.quote(str(ready))}\nexec sleep 60\n")
    process = subprocess.Popen([*trainer_command(settings), "a", "b"])
    wait_until(ready.exists, "the trainer has started")
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):  # the second one: it went between the two looks
        return False


@pytest.mark.parametrize("arguments", [[], ["dataset"], ["dataset", "output", "--predict", "output"], ["a", "b", "c"]])
def test_a_trainer_that_is_called_otherwise_says_how_it_is_called(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_given: object) -> None:
        pytest.fail("it was called")

    with pytest.raises(SystemExit) as caught:
        run_trainer(never, never, arguments)  # type: ignore[arg-type]  # gives nothing, for it is not called
    assert caught.value.code == 2
    assert "DATASET OUTPUT | --predict OUTPUT" in capsys.readouterr().err


def test_under_dagster_a_trainers_figures_reach_the_run_by_pipes(tmp_path: Path) -> None:
    import dagster as dg

    settings = python_trainer(tmp_path, "report('epoch 1', {'loss': 0.25}); report('done', {})")
    found: list[object] = []

    @dg.asset
    def model(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        done = dg.PipesSubprocessClient().run(
            context=context.op_execution_context,  # given its own, Dagster 1.13 deprecates a call of its own
            command=[*trainer_command(settings), str(tmp_path / "dataset"), str(tmp_path / "output")],
        )
        found.extend(done.get_custom_messages())
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([model], instance=instance)
        logged = [entry.user_message for entry in instance.all_logs(result.run_id)]
    assert "epoch 1: loss 0.25" in logged
    figures: list[Figures] = [{"loss": 0.25}, {}]
    assert found == [
        {"message": text, "figures": each} for text, each in zip(["epoch 1", "done"], figures, strict=True)
    ]
    assert json.dumps(found)
