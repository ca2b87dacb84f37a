"""The supervisor with engines that fail in every possible way. None of them loads a model."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.inference import child_process
from services.inference.chat.chat_messages import RenderedPrompt
from services.inference.chat.separated_answers import SeparatedAnswers
from services.inference.engine import engine_messages
from services.inference.supervision import engine_supervisor, poison_requests
from services.inference.supervision.engine_supervisor import SupervisedEngine
from services.inference.supervision.poison_requests import PoisonRequests, RequestSuspicion
from shared import errors
from shared.api.inference import Chunk, ModelState
from shared.timing import restart_policy
from shared.timing.backoff import Backoff
from shared.types import FinishReason, ModelName
from tests import stopwatch
from tests.services.inference.standins import PlainChat, Reader, Watch, job, until

LOAD = engine_messages.LoadCommand("model.gguf", 1, 64, 1, 0)

#: Answers Load, then runs the code that follows with `sock`, `engine_messages` and `commands`.
SPEAKS = """
import os, signal, socket, sys, time
from services.inference.engine import engine_messages as wire
sock = socket.socket(fileno=int(sys.argv[1]))
unframer = wire.Unframer()
def commands():
    while received := sock.recv(65536):
        for body in unframer.feed(received):
            yield wire.command_decoder.decode(body)
arriving = commands()
assert isinstance(next(arriving), wire.LoadCommand)
sock.sendall(wire.pack(wire.Loaded("a fake", 64, "", "", "")))
# Exactly this message, because tests look at what arrives behind it.
size = int.from_bytes(sock.recv(4, socket.MSG_WAITALL), "big")
assert isinstance(wire.command_decoder.decode(sock.recv(size, socket.MSG_WAITALL)), wire.ShowTokens)
"""


#: Helpers that accept a command and report a token of its answer.
ANSWERS = """
def step(command, text, finish=None, seconds=0.0):
    sock.sendall(wire.pack(wire.StepReport((wire.AnswerProgress(command.id, (1,), text, finish),), seconds, seconds / 2, 1, 0)))
def accept(command):
    sock.sendall(wire.pack(wire.GenerationAccepted(command.id, 3)))
"""


@asynccontextmanager
async def supervised(
    code: str,
    watch: Watch | None = None,
    *,
    suspected: PoisonRequests | None = None,
    watchdog_seconds: float = engine_supervisor.STEP_SECONDS,
) -> AsyncIterator[SupervisedEngine]:
    program = (sys.executable, "-c", code)
    engine = SupervisedEngine(
        ModelName("fake"), LOAD, watch or Watch(), PlainChat(), program, poison_requests=suspected, watchdog_seconds=watchdog_seconds
    )
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(engine.run())
        try:
            yield engine
        finally:
            running.cancel()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart_policy, "BACKOFF", Backoff(0.001, 0.001))
    monkeypatch.setattr(child_process, "EXIT_SECONDS", 0.2)


async def test_engine_is_given_up_after_five_crashes() -> None:
    watch = Watch()
    async with supervised("raise SystemExit(3)", watch) as engine:
        await until(lambda: engine.state is ModelState.FAILED)
        assert "crashed 5 times" in engine.detail
        assert "exit code 3" in engine.detail
        assert len(watch.restarts) == 4
        with pytest.raises(errors.Unavailable, match="crashed 5 times"):
            await engine.generate(job(), Reader())


async def test_model_that_cannot_be_loaded_is_not_retried() -> None:
    code = SPEAKS.replace('wire.Loaded("a fake", 64, "", "", "")', 'wire.LoadFailed("no memory")')
    watch = Watch()
    async with supervised(code, watch) as engine:
        await until(lambda: engine.state is ModelState.FAILED)
        assert "no memory" in engine.detail
        assert watch.restarts == []


async def test_program_that_does_not_start_counts_as_crashed() -> None:
    engine = SupervisedEngine(ModelName("fake"), LOAD, Watch(), PlainChat(), program=("/nowhere/engine",))
    await engine.run()
    assert engine.state is ModelState.FAILED
    assert "could not be started" in engine.detail


@pytest.mark.parametrize(
    ("code", "words"),
    [
        pytest.param('sock.sendall(b"\\xff" * 8)', "invalid report", id="a length beyond all"),
        pytest.param('sock.sendall(b"\\0\\0\\0\\1\\xc1")', "invalid report", id="bytes that are no msgpack"),
        pytest.param("os.kill(os.getpid(), signal.SIGSEGV)", "signal 11", id="a crash in native code"),
        pytest.param("sock.close(); time.sleep(60)", "signal 9", id="a closed socket and a process that stays"),
    ],
)
async def test_engine_that_sends_nonsense_fails_its_generations(code: str, words: str) -> None:
    async with supervised(SPEAKS + "next(arriving)\n" + code) as engine:
        await until(lambda: engine.state is ModelState.READY)
        with pytest.raises(errors.ModelCrashed, match=words):
            await engine.generate(job(), Reader())


async def test_a_stopped_answer_is_canceled_while_the_others_continue() -> None:
    code = """
command = next(arriving)
accept(command)
progress = wire.AnswerProgress(command.id, (1,), "a stop b"), wire.AnswerProgress(command.id, (2,), "c", answer=1)
sock.sendall(wire.pack(wire.StepReport(progress)))
cancel = next(arriving)
last = "d" if cancel == wire.CancelGeneration(command.id, 0) else repr(cancel)
sock.sendall(wire.pack(wire.StepReport((wire.AnswerProgress(command.id, (3,), last, "length", 1),))))
next(arriving)
"""
    async with supervised(SPEAKS + ANSWERS + code) as engine, asyncio.timeout(stopwatch.patience(10)):
        await until(lambda: engine.state is ModelState.READY)
        reader, asked = Reader(), job(n=2, stop=("stop",))
        answers = SeparatedAnswers(None, RenderedPrompt("p"), asked, reader, lambda: None)
        end = answers.complete(await engine.generate(asked, answers))
        assert end.finish_reasons == (FinishReason.STOP, FinishReason.LENGTH)
        assert [(chunk.answer, chunk.text) for chunk in reader.chunks] == [(0, "a "), (1, "c"), (1, "d")]


async def test_too_large_prompt_is_refused_and_what_was_sent_for_it_is_canceled(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
cancel, command = next(arriving), next(arriving)
accept(command)
step(command, repr(cancel), "stop")
next(arriving)
"""
    monkeypatch.setattr(engine_messages, "MAX_MESSAGE_BYTES", 1000)
    async with supervised(SPEAKS + ANSWERS + code) as engine:
        await until(lambda: engine.state is ModelState.READY)
        with pytest.raises(errors.BadRequest, match=r"the prompt has [0-9]{4} bytes; at most 1000 are allowed"):
            await engine.generate(job("x" * 1000), Reader())
        reader = Reader()
        await engine.generate(job(), reader)
    assert reader.text == repr(engine_messages.CancelGeneration(1))


async def test_reports_of_a_canceled_generation_are_ignored() -> None:
    code = """
for command in arriving:
    if isinstance(command, wire.StartGeneration):
        first = first if "first" in dir() else command.id
        sock.sendall(wire.pack(wire.GenerationAccepted(command.id, 3)))
        sock.sendall(wire.pack(wire.StepReport((wire.AnswerProgress(first, (1,), "old"),))))
        if command.id != first:
            sock.sendall(wire.pack(wire.StepReport((wire.AnswerProgress(command.id, (2,), "new", "stop"),))))
"""
    async with supervised(SPEAKS + code) as engine:
        await until(lambda: engine.state is ModelState.READY)
        reader = Reader()
        first = asyncio.create_task(engine.generate(job(), reader))
        await until(lambda: reader.chunks)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = Reader()
        end = await engine.generate(job(), second)
    assert second.text == "new"
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (3, 1)


async def test_engine_that_does_not_end_is_killed() -> None:
    code = SPEAKS + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(1)"
    async with supervised(code) as engine:
        await until(lambda: engine.state is ModelState.READY)
        pid = engine.pid
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_start_that_is_canceled_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process was killed, but nobody waited for its end."""
    processes, connecting, create = [], asyncio.Event(), asyncio.create_subprocess_exec

    async def create_known(*words: str, **options: Any) -> asyncio.subprocess.Process:
        processes.append(await create(*words, **options))
        return processes[0]

    async def connect(**_: object) -> None:
        connecting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", create_known)
    monkeypatch.setattr(asyncio, "open_unix_connection", connect)
    starting = asyncio.create_task(child_process.start((sys.executable, "-c", "import time; time.sleep(1000)")))
    await connecting.wait()
    starting.cancel()
    await asyncio.wait({starting})
    assert [process.returncode for process in processes] == [-signal.SIGKILL]


def test_engine_inherits_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0", "DATABASE_URL": "x", "OPENAI_API_KEY": "x", "NODE_KEY_FILE": "x"}
    monkeypatch.setattr(os, "environ", environment)
    assert set(child_process.inherited()) == {
        "PATH",
        "CUDA_VISIBLE_DEVICES",
        "PYTHONPATH",
        "GGML_NO_BACKTRACE",
        "GOMP_SPINCOUNT",
        "OPENBLAS_NUM_THREADS",
    }


# --- a silent engine --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("while True: time.sleep(1)", id="it computes for ever"),
        pytest.param("os.kill(os.getpid(), signal.SIGSTOP)", id="it is stopped"),
    ],
)
async def test_hung_engine_is_killed_and_restarted(code: str) -> None:
    hangs = SPEAKS + ANSWERS + 'command = next(arriving)\naccept(command)\nstep(command, "one")\n' + code
    async with supervised(hangs, watchdog_seconds=0.9) as engine:
        await until(lambda: engine.state is ModelState.READY)
        pid, reader = engine.pid, Reader()
        assert pid is not None
        with pytest.raises(errors.ModelCrashed, match=r"hung: it did not report a step for 0\.9 s"):
            await engine.generate(job(), reader)
        assert reader.text == "one"
        await until(lambda: engine.state is ModelState.READY)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_engine_that_never_loads_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_supervisor, "LOAD_SECONDS", 0.02)
    async with supervised("import time; time.sleep(60)", watchdog_seconds=0.02) as engine:
        await until(lambda: engine.state is ModelState.FAILED)
        assert "did not report progress with loading" in engine.detail


#: Stays silent for long after the last command, then reports an unrelated step.
SILENCE = """
time.sleep(1)
sock.sendall(wire.pack(wire.StepReport((), 0.004, 0.003, 0, 0)))
for command in arriving: pass
"""


async def test_idle_engine_may_be_silent() -> None:
    async with supervised(SPEAKS + SILENCE, watchdog_seconds=0.5) as engine:
        await until(lambda: engine.figures().steps)
        assert engine.state is ModelState.READY


class SlowReader(Reader):
    """Takes the first piece, then nothing until ``may_read`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.may_read = asyncio.Event()

    async def send(self, item: Chunk) -> None:
        await super().send(item)
        await self.may_read.wait()


async def test_engine_waiting_for_a_slow_reader_is_not_hung() -> None:
    code = 'command = next(arriving)\naccept(command)\nstep(command, "one")\nstep(command, " two", "stop")\n' + SILENCE
    async with supervised(SPEAKS + ANSWERS + code, watchdog_seconds=0.5) as engine:
        await until(lambda: engine.state is ModelState.READY)
        pid, reader = engine.pid, SlowReader()
        answering = asyncio.create_task(engine.generate(job(), reader))
        await until(lambda: engine.figures().steps == 3)
        assert engine.pid == pid
        reader.may_read.set()
        await answering
    assert reader.text == "one two"


async def test_speed_is_measured_from_the_steps() -> None:
    code = 'for command in arriving:\n    accept(command)\n    step(command, "one", seconds=0.2)\n    step(command, " two", "stop", 0.6)\n'
    async with supervised(SPEAKS + ANSWERS + code) as engine:
        await until(lambda: engine.state is ModelState.READY)
        await engine.generate(job(), Reader())
        figures = engine.figures()
        assert 0 < figures.cpu_seconds < 60
        assert 1e6 < figures.ram_bytes < 1e9
    assert figures.steps == 2
    assert (figures.overhead, figures.step_seconds, figures.tokens_per_second) == pytest.approx((0.5, 0.4, 2.5))
    assert (engine.figures().cpu_seconds, engine.figures().ram_bytes) == (0.0, 0)


async def test_lost_slots_are_reported() -> None:
    code = """
for command in arriving:
    accept(command)
    sock.sendall(wire.pack(wire.StepReport((wire.AnswerProgress(command.id, (1,), "a", "stop"),), preempted=2)))
"""
    watch = Watch()
    async with supervised(SPEAKS + ANSWERS + code, watch) as engine:
        await until(lambda: engine.state is ModelState.READY)
        await engine.generate(job(), Reader())
    assert watch.preemptions == 2


async def test_drafts_are_reported_and_their_tokens_delivered_one_by_one() -> None:
    code = """
for command in arriving:
    accept(command)
    parts = [wire.AnswerProgress(command.id, (number,), f"{number}", "stop" if number == 3 else None) for number in range(4)]
    sock.sendall(wire.pack(wire.StepReport(tuple(parts), 0.1, 0.1, 1, 0, drafted=5, accepted=3)))
"""
    watch = Watch()
    async with supervised(SPEAKS + ANSWERS + code, watch) as engine:
        await until(lambda: engine.state is ModelState.READY)
        reader = Reader()
        await engine.generate(job(), reader)
    assert [chunk.token_ids for chunk in reader.chunks] == [(number,) for number in range(4)]
    assert watch.drafts == [(5, 3)]


# --- an engine that dies ------------------------------------------------------------------------------------------------------

#: The first process dies where the test says; later ones answer.
DIES_ONCE = """
import os, pathlib
def die_at(point):
    lives = pathlib.Path(MARKER)
    if point == POINT and not lives.exists():
        lives.touch()
        os.kill(os.getpid(), 9)
die_at("start")
"""
GOES_ON = """
die_at("loaded")
for command in arriving:
    if isinstance(command, wire.StartGeneration):
        die_at("asked")
        accept(command)
        die_at("accepted")
        step(command, "one")
        die_at("middle")
        rest = wire.pack(wire.StepReport((wire.AnswerProgress(command.id, (2,), " two", "stop"),)))
        sock.sendall(rest[:7])
        die_at("half a report")
        sock.sendall(rest[7:])
        die_at("end")
"""


@pytest.mark.parametrize(
    ("point", "failures"),
    [
        ("start", {0}),
        # The request may be sent before or after the engine is seen to be dead.
        ("loaded", {0, 1}),
        ("asked", {1}),
        ("accepted", {1}),
        ("middle", {1}),
        ("half a report", {1}),
        ("end", {0, 1}),
    ],
)
async def test_next_engine_answers_wherever_the_last_one_died(point: str, failures: set[int], tmp_path: Path) -> None:
    marker = tmp_path / "died"
    code = DIES_ONCE.replace("MARKER", repr(str(marker))).replace("POINT", repr(point)) + SPEAKS + ANSWERS + GOES_ON
    failed, answered, reader = [], False, Reader()
    async with supervised(code) as engine:
        while not (marker.exists() and answered):
            await until(lambda: engine.state is ModelState.READY)
            reader, answered = Reader(), False
            try:
                await engine.generate(job(), reader)
                answered = True
            except errors.AimeshError as error:
                failed.append(error)
    assert reader.text == "one two"
    assert len(failed) in failures
    assert all(error.retryable for error in failed)


async def test_shutdown_ends_the_generations() -> None:
    engine = SupervisedEngine(
        ModelName("fake"), LOAD, Watch(), PlainChat(), (sys.executable, "-c", SPEAKS + ANSWERS + "for command in arriving: accept(command)")
    )
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(engine.run())
        await until(lambda: engine.state is ModelState.READY)
        reader = Reader()
        answering = asyncio.create_task(engine.generate(job(), reader))
        await until(lambda: reader.accepted)
        running.cancel()
        with pytest.raises(errors.ModelCrashed, match="was stopped"):
            await answering


# --- poison requests ------------------------------------------------------------------------------------------------------------

#: Dies of "poison". Its first process never finishes "waiting"; everything else is answered.
DIES_OF_POISON = """
import pathlib
lives = pathlib.Path(MARKER)
is_first = not lives.exists()
lives.touch()
for command in arriving:
    if isinstance(command, wire.StartGeneration):
        accept(command)
        match command.prompt.text:
            case "poison":
                os.abort()
            case "waiting" if is_first:
                step(command, "one")
            case _:
                step(command, "well", "stop")
"""


async def test_request_that_killed_two_engines_is_not_run_again(tmp_path: Path) -> None:
    code = SPEAKS + ANSWERS + DIES_OF_POISON.replace("MARKER", repr(str(tmp_path / "lived")))
    suspected = PoisonRequests(time.monotonic)
    innocent, guilty = job("waiting"), job("poison")
    async with supervised(code, suspected=suspected) as engine:

        async def ready() -> None:
            await until(lambda: engine.state is ModelState.READY)

        await ready()
        reader = Reader()
        waiting = asyncio.create_task(engine.generate(innocent, reader))
        await until(lambda: reader.chunks)
        for failing in (engine.generate(guilty, Reader()), waiting):
            with pytest.raises(errors.ModelCrashed, match="signal 6"):
                await failing
        assert {suspected.suspicion(poison_requests.fingerprint(one)) for one in (innocent, guilty)} == {RequestSuspicion.SUSPECT}
        await ready()
        await engine.generate(innocent, Reader())
        assert suspected.suspicion(poison_requests.fingerprint(innocent)) is RequestSuspicion.CLEAR
        with pytest.raises(errors.ModelCrashed):
            await engine.generate(guilty, Reader())
        await ready()
        pid = engine.pid
        with pytest.raises(errors.Poison, match="crashed the engine of fake twice") as refused:
            await engine.generate(job("poison", seed=5), Reader())
        assert (refused.value.code, refused.value.status, refused.value.retryable) == ("poison", 400, False)
        await engine.generate(job("hello"), Reader())
        assert engine.pid == pid


CONVERTS = """
for command in arriving:
    match getattr(command, "token_ids", None):
        case b"dies":
            os.abort()
        case b"lies":
            step(command, "an answer")
        case bytes(token_ids):
            sock.sendall(wire.pack(wire.ConversionResult(command.id, token_ids)))
        case _:
            sock.sendall(wire.pack(wire.ConversionResult(command.id, b"")))
"""


async def test_conversions_are_answered_and_suspected_as_prompts_are() -> None:
    code = SPEAKS + ANSWERS + CONVERTS
    async with supervised(code) as engine:
        await until(lambda: engine.state is ModelState.READY)
        packed = [bytes([number]) * 4 for number in range(20)]
        asked = (engine.convert(one) for one in packed)
        assert await asyncio.gather(*asked) == packed
        for token_ids, words in ((b"lies", "an answer to a conversion"), (b"dies", "signal 6"), (b"dies", "signal 6")):
            await until(lambda: engine.state is ModelState.READY)
            with pytest.raises(errors.ModelCrashed, match=words):
                await engine.convert(token_ids)
        await until(lambda: engine.state is ModelState.READY)
        with pytest.raises(errors.Poison, match="crashed the engine of fake twice"):
            await engine.convert(b"dies")
        with pytest.raises(errors.ModelCrashed, match="converted tokens for a prompt"):
            await engine.generate(job(), Reader())


#: Answers each generation with whether others arrived soon after the first.
SEES_COMPANY = """
import select
while True:
    select.select([sock], [], [])
    time.sleep(0.2)
    together = [wire.command_decoder.decode(body) for body in unframer.feed(sock.recv(65536))]
    if not together:
        break
    for command in together:
        accept(command)
        step(command, "company" if len(together) > 1 else "alone", "stop")
"""


@pytest.mark.parametrize(("standing", "text"), [(RequestSuspicion.CLEAR, "company"), (RequestSuspicion.SUSPECT, "alone")])
async def test_suspect_runs_alone(standing: RequestSuspicion, text: str) -> None:
    suspected = PoisonRequests(time.monotonic)
    if standing is RequestSuspicion.SUSPECT:
        suspected.died([poison_requests.fingerprint(job("suspect"))], alone=False)
    async with supervised(SPEAKS + ANSWERS + SEES_COMPANY, suspected=suspected) as engine:
        await until(lambda: engine.state is ModelState.READY)
        reader, others = Reader(), [Reader() for _ in range(3)]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(engine.generate(job("suspect"), reader))
            for other in others:
                tasks.create_task(engine.generate(job("other"), other))
    assert reader.text == text
    assert all(other.text for other in others)


async def test_waiting_copy_is_refused_after_the_second_crash() -> None:
    code = SPEAKS + ANSWERS + "command = next(arriving)\naccept(command)\ntime.sleep(0.1)\nos.abort()"
    suspected = PoisonRequests(time.monotonic)
    suspected.died([poison_requests.fingerprint(job())], alone=False)
    async with supervised(code, suspected=suspected) as engine:
        await until(lambda: engine.state is ModelState.READY)
        both = await asyncio.gather(engine.generate(job(), Reader()), engine.generate(job(), Reader()), return_exceptions=True)
    assert [type(one) for one in both] == [errors.ModelCrashed, errors.Poison]


async def test_finished_answer_is_delivered_and_not_blamed_for_a_later_crash() -> None:
    code = 'command = next(arriving)\naccept(command)\nstep(command, "one")\nstep(command, " two", "stop")\nos.abort()'
    suspected, watch = PoisonRequests(time.monotonic), Watch()
    async with supervised(SPEAKS + ANSWERS + code, watch, suspected=suspected) as engine:
        await until(lambda: engine.state is ModelState.READY)
        reader = SlowReader()
        answering = asyncio.create_task(engine.generate(job(), reader))
        await until(lambda: watch.restarts)
        assert suspected.suspicion(poison_requests.fingerprint(job())) is RequestSuspicion.CLEAR
        reader.may_read.set()
        end = await answering
    assert (reader.text, end.usage.completion_tokens) == ("one two", 2)
