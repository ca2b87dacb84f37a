"""The checker with a real vocabulary, and with processes that fail in every way they can."""

import asyncio
import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest

from services.inference.models import model_discovery
from services.inference.structured_output import checker_messages, grammar_checker, output_formats
from services.inference.structured_output.grammar_checker import Checker
from services.inference.supervision import engine_supervisor
from shared import errors
from tests.services.inference.standins import until
from tests.services.inference.structured_output import hostile, tool_schemas

#: Reads grammars as the real one does, and answers with what follows for each of them.
SPEAKS = """
import os, signal, socket, sys, time
from services.inference.structured_output import checker_messages as verdicts
from services.inference.structured_output.checker_messages import GrammarVerdict, Judgement
sock = socket.socket(fileno=int(sys.argv[1]))
verdicts.send(sock, GrammarVerdict(Judgement.FITS))
while (grammar := verdicts.receive(sock)) is not None:
    """


#: The real checker with a longer time limit: on a busy machine, its 2 s of CPU time take longer than usual.
PATIENT = """
from services.inference.structured_output import checker_messages, checker_process
checker_messages.WALL_SECONDS = 200.0
checker_process.main()
"""


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker_messages, "WALL_SECONDS", 200.0)


def with_vocabulary() -> Checker:
    return Checker(model_discovery.packaged(), engine_supervisor.scrubbed(os.environ), program=(sys.executable, "-c", PATIENT))


def with_code(code: str) -> Checker:
    return Checker(Path("model.gguf"), engine_supervisor.scrubbed(os.environ), program=(sys.executable, "-c", code))


def is_alive(pid: int | None) -> bool:
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def has_ended(pid: int | None) -> bool:
    return not is_alive(pid)


@pytest.mark.usefixtures("_patient")
async def test_hostile_format_is_accepted_or_refused_and_the_process_survives() -> None:
    corpus = hostile.corpus()
    assert len(corpus) >= 300
    refused: dict[str, str] = {}
    async with with_vocabulary() as checker:
        await checker.check('root ::= "a"')
        pid = checker.pid
        for name, wanted in corpus.items():
            try:
                await checker.check(output_formats.grammar_of(wanted))
            except errors.BadRequest as error:
                refused[name] = error.message
            assert checker.pid == pid, name
        await checker.check('root ::= "b"')
        assert is_alive(pid)
    assert not is_alive(pid)
    assert not [message for message in refused.values() if len(message) > 500 or not message.startswith("format")]
    for name in ("grammar: stacks that double with every letter", "schema: three ways that look the same"):
        assert "more than 2 s" in refused[name]
    for name in ("schema: maxLength 10,000", "schema: an enum of 500 signs", "grammar: 64 parentheses", "grammar: a chain of 400 rules"):
        assert name not in refused


@pytest.mark.usefixtures("_patient")
async def test_tools_of_real_servers_are_accepted() -> None:
    async with with_vocabulary() as checker:
        for wanted in tool_schemas.SCHEMAS.values():
            await checker.check(output_formats.grammar_of_schema(json.dumps(wanted)))
        await checker.check(output_formats.any_object())


@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        pytest.param('root ::= root "a"', "llama.cpp rejects the grammar: .*left recursion", id="left recursion"),
        pytest.param("root ::= <nosuchtoken>", "llama.cpp rejects the grammar: invalid token", id="a token that is none"),
        pytest.param("root ::= [\\x00]", "no token of this model can start", id="no beginning"),
        pytest.param('root ::= "a"{2,1}', "more than 2 s or 512 MiB", id="a repeat that fills the memory"),
    ],
)
async def test_checker_survives_whatever_llama_cpp_does(grammar: str, words: str) -> None:
    """Also with those that `grammar_limits` would have kept from it."""
    async with with_vocabulary() as checker:
        with pytest.raises(errors.BadRequest, match=f"^format: .*{words}"):
            await checker.check(grammar)
        pid = checker.pid
        await checker.check('root ::= "a"')
        assert checker.pid == pid


async def test_verdicts_are_cached_and_the_oldest_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_checker, "MOST_VERDICTS", 2)
    # Says how often it was asked, as the reason of a refusal.
    code = "n = 0\n" + SPEAKS + "n += 1; verdicts.send(sock, GrammarVerdict(Judgement.REFUSED, f'question {n}'))"
    async with with_code(code) as checker:

        async def answer(grammar: str) -> str:
            with pytest.raises(errors.BadRequest) as raised:
                await checker.check(grammar)
            return raised.value.message.partition("question ")[2]

        assert [await answer(name) for name in ("a", "b", "a", "c", "a", "b")] == ["1", "2", "1", "3", "1", "4"]
        assert list(await asyncio.gather(answer("d"), answer("d"), answer("d"))) == ["5", "5", "5"]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", id="it dies"),
        pytest.param("sock.close(); signal.pause()", id="it closes its socket and stays"),
        pytest.param("sock.sendall(b'\\0\\0\\0\\1\\xc1')", id="it sends what is no verdict"),
        pytest.param("sock.sendall(b'\\xff' * 8); sock.close()", id="it sends a length and no more"),
        pytest.param("signal.pause()", id="it says nothing"),
    ],
)
async def test_failing_process_refuses_that_grammar_and_is_restarted(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker_messages, "WALL_SECONDS", 1.0)
    monkeypatch.setattr(grammar_checker, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(grammar_checker, "EXIT_SECONDS", 0.1)
    code = SPEAKS + f"if grammar == b'bad': {answer}\n    verdicts.send(sock, GrammarVerdict(Judgement.FITS))"
    async with with_code(code) as checker:
        await checker.check("good")
        first = checker.pid
        with pytest.raises(errors.BadRequest, match=r"^format: the grammar was not compiled"):
            await checker.check("bad")
        assert not is_alive(first)
        await checker.check("another good one")
        assert checker.pid != first


@pytest.mark.parametrize(
    ("code", "words"),
    [
        pytest.param("raise SystemExit(3)", "does not start", id="it ends at once"),
        pytest.param(SPEAKS.replace("FITS", "NO_VOCABULARY") + "pass", "load a vocabulary from", id="no vocabulary"),
    ],
)
async def test_process_that_does_not_start_is_not_the_callers_fault(code: str, words: str) -> None:
    async with with_code(code) as checker:
        with pytest.raises(errors.Unavailable, match=words):
            await checker.check("x")
        assert checker.pid is None


async def test_invalid_model_file_has_no_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(64))
    async with Checker(path, engine_supervisor.scrubbed(os.environ)) as checker:
        with pytest.raises(errors.Unavailable, match="load a vocabulary from"):
            await checker.check('root ::= "a"')


async def test_callers_beyond_the_queue_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_checker, "MOST_WAITING", 2)
    code = SPEAKS + "time.sleep(0.05); verdicts.send(sock, GrammarVerdict(Judgement.FITS))"
    async with with_code(code) as checker:
        ends = await asyncio.gather(*(checker.check(str(number)) for number in range(5)), return_exceptions=True)
    assert [type(end) for end in ends if end is not None] == [errors.Overloaded] * (len(ends) - ends.count(None))
    assert 2 <= ends.count(None) < 5


async def test_canceled_caller_leaves_no_answer_for_the_next(tmp_path: Path) -> None:
    request_arrived = tmp_path / "asked"
    code = (
        SPEAKS
        + f"""
    if grammar == b'slow':
        open({str(request_arrived)!r}, 'w').close()
        select = __import__('select').select([sock], [], [], 60)
        break
    verdicts.send(sock, GrammarVerdict(Judgement.REFUSED, grammar.decode()))"""
    )
    async with with_code(code) as checker:
        slow = asyncio.create_task(checker.check("slow"))
        await until(request_arrived.exists)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        with pytest.raises(errors.BadRequest, match="next"):
            await checker.check("next")


async def test_idle_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_checker, "IDLE_SECONDS", 0.0)
    async with with_code(SPEAKS + "verdicts.send(sock, GrammarVerdict(Judgement.FITS))") as checker:
        for grammar in ("a", "b"):
            ready = asyncio.create_task(checker.check(grammar))
            await until(lambda: checker.pid is not None)
            pid = checker.pid
            await ready
            await until(partial(has_ended, pid))
            assert checker.pid is None


async def test_process_gets_no_secrets(tmp_path: Path) -> None:
    seen = tmp_path / "environment"
    code = (
        f"import os; open({str(seen)!r}, 'w').write(repr(dict(os.environ)))\n"
        + SPEAKS
        + "verdicts.send(sock, GrammarVerdict(Judgement.FITS))"
    )
    environment = engine_supervisor.scrubbed({**os.environ, "OPENAI_API_KEY": "canary"})
    async with Checker(Path("model.gguf"), environment, program=(sys.executable, "-c", code)) as checker:
        await checker.check("x")
    assert "canary" not in seen.read_text()
