"""Turns a trainer, whatever it is written in, into a model's folder and into predictions: the contract with it.

    <TDS_TRAINER> DATASET OUTPUT       train: read the dataset's folder, write the model into the folder OUTPUT, exit 0
    <TDS_TRAINER> --predict OUTPUT     predict: a question a line on stdin, for each at once a line on stdout:
                                       {"prediction": "<class>", "score": 0.93}, score 0 to 1 or null; end with stdin

A trainer must not read `test.jsonl`: what the model is worth is measured by asking it those questions. What it prints
while it trains is its log. One that calls `run_trainer` has arguments, lines and Dagster Pipes done for it.

Both end with whoever started them, also if that is killed (`leash`); a predictor also when its stdin is closed.
"""

import argparse
import os
import select
import shlex
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, Self

import msgspec

from ingest.errors import ModelMissing, TdsError, TrainingFailed, shown
from ingest.pipeline.partitions import PRIVATE_FOLDER
from ingest.settings import Settings, child_environment
from tds_dagster.training.last_lines import keeping_last_lines
from tds_dagster.training.leash import leashed

DEFAULT = "default"
ANSWER_TIMEOUT_S = 600.0  # a model that is loaded from a slow disk before its first answer
_END_TIMEOUT_S = 10.0  # what a trainer or predictor gets to end by itself
_PIPE_BYTES = 1 << 16  # written or read at once
_LAST_LINES = 20  # of its log, in an error

Figures = Mapping[str, float | int | str]
Report = Callable[[str, Figures], None]  # what happens, and its figures; to Dagster or to the terminal
Train = Callable[[Path, Path, Report], None]  # dataset, output, report
# A question → its class and that one's probability. `Any`, for which fields hold what the trainer's author knows.
Answer = Callable[[Mapping[str, Any]], tuple[str, float | None]]


class Prediction(msgspec.Struct, frozen=True):
    """What a model answers to a question."""

    prediction: str  # the class
    score: float | None = None  # how probable it holds it, 0 to 1; None where the trainer does not say


class Closing(ABC):
    """What `with` closes."""

    @abstractmethod
    def close(self) -> None:
        """End it; again does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _err: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


class Predictor(Closing):
    """A model that answers."""

    @abstractmethod
    def predict(self, questions: Iterable[Mapping[str, object]]) -> Iterator[Prediction]:
        """An answer for each question, in order. Raises TrainingFailed if there is none, or a wrong one."""


def trainer_command(settings: Settings, last_lines: Path | None = None) -> list[str]:
    """What runs the trainer, before its arguments: TDS_TRAINER, else ours. To be started by this process.

    It ends with this process (`leash`), so the command holds this process's id. `last_lines` is a file that gets the
    end of its stderr if it ends badly, for those to whom that is not handed over.
    """
    own = [sys.executable, "-m", "tds_dagster.training.trainer"]
    command = own if settings.trainer is None else shlex.split(settings.trainer)
    return leashed(command if last_lines is None else keeping_last_lines(command, last_lines))


def trainer_name(settings: Settings) -> str:
    """What a manifest calls the trainer: `default`, or the text of TDS_TRAINER."""
    return DEFAULT if settings.trainer is None else settings.trainer


def say_nothing(_message: str, _figures: Figures) -> None:
    """A report that nobody reads."""


def run_in_subprocess(settings: Settings, dataset_folder: Path, output: Path, report: Report = say_nothing) -> None:
    """Train in a process of its own; what it prints goes to `report`, line by line.

    Raises TrainingFailed with the end of its log if it does not exit with 0.
    """
    output.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    process = subprocess.Popen(
        [*trainer_command(settings), str(dataset_folder), str(output)],
        env=child_environment(settings, PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    last: deque[str] = deque(maxlen=_LAST_LINES)
    try:
        for line in _lines(process.stdout):
            last.append(line)
            report(line, {})
        code = process.wait()
    finally:
        _end(process)
    if code:
        raise TrainingFailed(_ended_badly(settings, code, last))


def open_predictor(settings: Settings, model: str, folder: Path, trainer: str) -> Predictor:
    """What answers with the model in a folder that `trainer` (see `trainer_name`) wrote.

    Ours runs in this process; another one is the command of TDS_TRAINER. Raises ModelMissing without the folder, or if
    TDS_TRAINER is not the trainer that made it, TrainingFailed if our model's file is not what we wrote.
    """
    if not folder.is_dir():
        raise ModelMissing(f"{folder}: expected the folder of a {model} model; train one with `tds train {model}`")
    if trainer == DEFAULT:
        from tds_dagster.training.trainer import open_model

        return open_model(folder)
    if trainer != settings.trainer:
        raise ModelMissing(
            f"{folder}: made by the trainer {trainer!r}, and TDS_TRAINER is {settings.trainer!r}: expected the same "
            f"one, for it has to load the model; set TDS_TRAINER={shlex.quote(trainer)}"
        )
    return _ProcessPredictor(settings, folder)


class _ProcessPredictor(Predictor):
    """The trainer's command with `--predict`: a line out, a line in."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._process = subprocess.Popen(
            leashed([*shlex.split(settings.trainer or ""), "--predict", str(folder)]),
            env=child_environment(settings, PYTHONUNBUFFERED="1"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._rest = b""

    def predict(self, questions: Iterable[Mapping[str, object]]) -> Iterator[Prediction]:
        for question in questions:
            yield self._prediction(self._ask(question))

    def close(self) -> None:
        _end(self._process, self._listener)

    def _listen(self) -> None:
        for line in _lines(self._process.stderr):
            self._last.append(line)

    def _ask(self, question: Mapping[str, object]) -> bytes:
        """Write a question, and give the line that answers it. What hangs, at either end, does not hang us."""
        out, answers = self._process.stdin, self._process.stdout
        if out is None or answers is None or out.closed:
            raise self._failed("it has ended")
        rest, deadline = memoryview(msgspec.json.encode(question) + b"\n"), time.monotonic() + ANSWER_TIMEOUT_S
        while rest or b"\n" not in self._rest:
            ready = select.poll()  # not `select`, which ends at the 1024th open file
            ready.register(answers, select.POLLIN)
            if rest:
                ready.register(out, select.POLLOUT)
            events = dict(ready.poll(max(0.0, deadline - time.monotonic()) * 1000))
            if not events:
                raise self._failed(f"no answer within {ANSWER_TIMEOUT_S:.0f} s, expected a line for each, flushed")
            if answers.fileno() in events:
                self._rest += self._more(answers)
            if out.fileno() in events:
                rest = rest[self._wrote(out, rest) :]
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _more(self, answers: IO[bytes]) -> bytes:
        piece = os.read(answers.fileno(), _PIPE_BYTES)
        if not piece:
            raise self._failed("it ended without an answer")
        return piece

    def _wrote(self, out: IO[bytes], rest: memoryview) -> int:
        try:
            return os.write(out.fileno(), rest[:_PIPE_BYTES])
        except BlockingIOError:
            return 0  # there is room, and less than the system writes at once
        except BrokenPipeError as err:
            raise self._failed("it ended before a question") from err

    def _prediction(self, line: bytes) -> Prediction:
        try:
            found = msgspec.json.decode(line, type=Prediction)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            text = line.decode(errors="replace")
            raise self._failed(f"it answered {shown(text)} ({err})") from err
        if found.score is not None and not 0 <= found.score <= 1:
            raise self._failed(f"it gave the score {found.score}, expected 0 to 1 or null")
        return found

    def _failed(self, what: str) -> TrainingFailed:
        _end(self._process, self._listener)
        return TrainingFailed(
            f'{trainer_name(self._settings)} --predict: {what}; expected {{"prediction": "…", "score": 0.9}} for each '
            f"question; correct the trainer. {_log(self._last)}"
        )


def _lines(pipe: IO[bytes] | None) -> Iterator[str]:
    """What a process writes, line by line, without empty ones; bytes that are no UTF-8 are shown as U+FFFD."""
    for line in pipe or ():
        text = line.decode(errors="replace").rstrip()
        if text:
            yield text


def _end(process: subprocess.Popen[bytes], listener: threading.Thread | None = None) -> None:
    """Wait for it, its stdin closed; ask it to end, and kill it, if it does not. Then close its other pipes.

    `listener` reads its stderr to the end: not before, or what it said last would be lost. Where something that the
    process left behind holds the pipe open, it stays with the listener.
    """
    if process.stdin is not None:
        with suppress(BrokenPipeError):  # it is gone, with a question in the pipe
            process.stdin.close()
        _wait(process)
    if process.poll() is None:
        process.terminate()
        _wait(process)
    if process.poll() is None:
        process.kill()
        process.wait()
    if listener is not None:
        listener.join(_END_TIMEOUT_S)
    is_read = listener is None or not listener.is_alive()
    for pipe in (process.stdout, process.stderr if is_read else None):
        if pipe is not None:
            pipe.close()


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return


def _ended_badly(settings: Settings, code: int, last: Sequence[str]) -> str:
    how = f"was ended by signal {code - 128}" if code > 128 else f"ended with exit code {code}"
    return f"trainer {trainer_name(settings)}: {how}, expected 0; correct what it says. {_log(last)}"


def _log(last: Sequence[str]) -> str:
    return "\n".join(["The end of its log:", *(f"  {line}" for line in last)]) if last else "It wrote no log."


# ---------------------------------------------------------------------------------- in the trainer's own process


def run_trainer(train: Train, predict: Callable[[Path], Answer], arguments: Sequence[str] | None = None) -> None:
    """Be a trainer: what a user's own one calls at its end. `arguments` are those of the command line unless given.

        def train(dataset: Path, output: Path, report: Report) -> None:
            ...                                   # read dataset/train.jsonl and validation.jsonl, write into output
        def predict(output: Path) -> Answer:      # called once; what it gives is called for each question
            ...
        if __name__ == "__main__":
            run_trainer(train, predict)

    `report("epoch 1", {"loss": 0.4})` goes to Dagster's log where Dagster runs the trainer (Pipes), else to stderr.
    A TdsError ends it with its message and exit code 1.
    """
    asked = _parsed(sys.argv[1:] if arguments is None else arguments)
    try:
        if asked.predict is not None:
            _answer_lines(predict(asked.predict))
        else:
            asked.output.mkdir(parents=True, exist_ok=True)
            with _reporting() as report:
                train(asked.dataset, asked.output, report)
    except TdsError as err:
        sys.exit(f"{type(err).__name__}: {err}")


class _Asked(argparse.Namespace):
    dataset: Path
    output: Path
    predict: Path | None


def _parsed(arguments: Sequence[str]) -> _Asked:
    parser = argparse.ArgumentParser(usage="%(prog)s DATASET OUTPUT | --predict OUTPUT")
    parser.add_argument("dataset", nargs="?", type=Path, help="the dataset's folder, with train.jsonl")
    parser.add_argument("output", nargs="?", type=Path, help="the folder that the model is written to")
    parser.add_argument("--predict", type=Path, metavar="OUTPUT", help="answer questions, JSON lines from stdin")
    asked = parser.parse_args(arguments, _Asked())
    if (asked.predict is None) == (asked.output is None):
        parser.error("expected the dataset's folder and an output folder, or --predict and the output folder")
    return asked


def _answer_lines(answer: Answer) -> None:
    """A question a line in, an answer a line out. What else is printed goes to stderr: it would pass for an answer."""
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        os.dup2(2, 1)
        for line in sys.stdin.buffer:
            prediction, score = answer(msgspec.json.decode(line))
            if not _write(out, msgspec.json.encode({"prediction": prediction, "score": score}) + b"\n"):
                return


def _write(out: BinaryIO | IO[bytes], line: bytes) -> bool:
    """Whether somebody still reads."""
    try:
        out.write(line)
    except BrokenPipeError:
        return False
    return True


@contextmanager
def _reporting() -> Iterator[Report]:
    """Dagster Pipes if Dagster runs this process, else stderr."""
    from dagster_pipes import PipesEnvVarParamsLoader, open_dagster_pipes

    loader = PipesEnvVarParamsLoader()  # type: ignore[no-untyped-call]  # its __init__ has no annotation
    if not loader.is_dagster_pipes_process():
        yield _print
        return
    with open_dagster_pipes(params_loader=loader) as pipes:

        def tell(message: str, figures: Figures) -> None:
            pipes.log.info(sentence_of(message, figures))
            pipes.report_custom_message({"message": message, "figures": dict(figures)})

        yield tell


def _print(message: str, figures: Figures) -> None:
    sys.stderr.write(f"{sentence_of(message, figures)}\n")
    sys.stderr.flush()


def sentence_of(message: str, figures: Figures) -> str:
    """A report as a line: `epoch 1: loss 0.4, rows 120`."""
    told = ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in figures.items())  # fmt: skip
    return f"{message}: {told}" if told else message
