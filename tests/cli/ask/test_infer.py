"""`aicli infer`: its requests, its output, and that an interrupted answer is canceled."""

import json
import os
import signal
import socket
from asyncio import Event
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from cli.ask import infer
from shared import errors
from shared.api import gateway
from shared.api.gateway import InferenceChunk, InferenceRequest, InferenceResult, ProcessInferenceRequest
from shared.api.generation import ReasoningEffort, Usage
from shared.api.method import Nothing
from shared.timing import retry_policy
from shared.timing.retry_policy import RetryPolicy
from shared.types import FinishReason, ModelName, RequestId
from tests.cli.conftest import KEY
from tests.cli.fake_mesh import Shell

RESULT = InferenceResult(
    request_id=RequestId(UUID(int=7)),
    model=ModelName("smollm2"),
    finish_reason=FinishReason.STOP,
    usage=Usage(prompt_tokens=4, completion_tokens=2),
    response_time_ms=30,
    first_token_ms=10,
)
METHOD = gateway.process_inference_request


@pytest.fixture
def infer_shell(shell: Shell) -> Shell:
    shell.mesh.stream_answer(METHOD, [InferenceChunk("Hello"), InferenceChunk(" world")], RESULT)
    return shell


def request_of(shell: Shell) -> InferenceRequest:
    sent = shell.mesh.calls[-1].request
    assert isinstance(sent, ProcessInferenceRequest)
    return sent.request


def test_stdout_has_only_the_answer(infer_shell: Shell) -> None:
    result = infer_shell("infer", "hi", "-v")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello world\n", "")
    assert infer_shell.mesh.calls[0].credential == KEY
    assert infer_shell.mesh.left_early == []


def thinking(shell: Shell) -> Shell:
    shell.mesh.stream_answer(
        METHOD, [InferenceChunk("", reasoning="\nLet me"), InferenceChunk("", reasoning=" see.\n"), InferenceChunk("42")], RESULT
    )
    return shell


def test_a_pipe_gets_no_thoughts(shell: Shell) -> None:
    assert thinking(shell)("infer", "hi").stdout == "42\n"
    assert json.loads(shell("infer", "hi", "--json").stdout)["reasoning"] == "\nLet me see.\n"
    assert "reasoning" not in json.loads(shell("infer", "hi", "--json", "--no-thoughts").stdout)


@pytest.mark.parametrize(
    ("options", "shown"), [((), "Let me see.\n\n42\n"), (("--no-thoughts",), "42\n"), (("--no-stream",), "Let me see.\n\n42\n")]
)
def test_a_terminal_gets_thoughts_and_an_empty_line(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], shown: str
) -> None:
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _stream: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert thinking(shell)("infer", "hi", *options).stdout == shown
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm")
    # Click's runner removes the styles of `echo`.
    assert ("\x1b[2m" in thinking(shell)("infer", "hi", *options).stdout) is (not options)


def test_no_stream_prints_the_same(infer_shell: Shell) -> None:
    assert infer_shell("infer", "hi", "--no-stream").stdout == "Hello world\n"


def test_pipe_gets_the_unmodified_answer(shell: Shell) -> None:
    shell.mesh.stream_answer(METHOD, [InferenceChunk("a\x1b[0m\n")], RESULT)
    assert shell("infer", "hi").stdout == "a\x1b[0m\n"


def test_json_is_one_object(infer_shell: Shell) -> None:
    assert json.loads(infer_shell("infer", "hi", "--json").stdout) == {
        "text": "Hello world",
        "request_id": "00000000-0000-0000-0000-000000000007",
        "model": "smollm2",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 4, "completion_tokens": 2, "cached_tokens": 0, "reasoning_tokens": 0, "total_tokens": 6},
        "response_time_ms": 30,
        "first_token_ms": 10,
        "cost_micro": 0,
        "clamped_to": None,
        "cached": False,
        "target": None,
        "flex": False,
    }


def test_answer_cut_short_by_credits_says_so(shell: Shell) -> None:
    cut = msgspec.structs.replace(RESULT, clamped_to=2, finish_reason=FinishReason.LENGTH)
    shell.mesh.stream_answer(METHOD, [InferenceChunk("Hello world")], cut)
    result = shell("infer", "hi")
    assert result.stdout == "Hello world\n"
    assert result.stderr == "The answer was cut off after 2 tokens: not enough credits. See aicli usage.\n"
    assert json.loads(shell("infer", "hi", "--json").stdout)["clamped_to"] == 2
    # The answer had already ended.
    shell.mesh.stream_answer(METHOD, [InferenceChunk("Hello world")], msgspec.structs.replace(RESULT, clamped_to=5))
    assert shell("infer", "hi").stderr == ""


def test_every_option_reaches_the_gateway(infer_shell: Shell) -> None:
    options = ["--model", "m", "--system", "s", "--stop", "a", "--stop", "b"]
    numbers = ["--max-tokens", "5", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "3", "--seed", "1", "--reasoning-effort", "low"]
    assert infer_shell("infer", *options, *numbers, "--", "-x").exit_code == 0
    assert request_of(infer_shell) == InferenceRequest(
        prompt="-x",
        model=ModelName("m"),
        system="s",
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        stop=("a", "b"),
        seed=1,
        reasoning_effort=ReasoningEffort.LOW,
    )


def test_omitted_options_are_left_to_the_worker(infer_shell: Shell) -> None:
    infer_shell("infer", "hi")
    assert request_of(infer_shell) == InferenceRequest(prompt="hi")


@pytest.mark.parametrize("options", [(), ("--no-cache",)])
def test_no_cache_asks_the_model_itself(infer_shell: Shell, options: tuple[str, ...]) -> None:
    infer_shell("infer", *options, "hi")
    sent = infer_shell.mesh.calls[-1].request
    assert isinstance(sent, ProcessInferenceRequest)
    assert sent.fresh is bool(options)


def test_dash_reads_stdin(infer_shell: Shell) -> None:
    assert infer_shell("infer", "-", stdin="from\na pipe").exit_code == 0
    assert request_of(infer_shell).prompt == "from\na pipe"


def test_words_files_and_a_pipe_make_one_prompt(monkeypatch: pytest.MonkeyPatch, infer_shell: Shell, tmp_path: Path) -> None:
    monkeypatch.setattr(infer, "is_piped", lambda _stdin: True)
    (tmp_path / "a.txt").write_text("in a file")
    (tmp_path / "empty.txt").write_text("")
    files = ["--file", str(tmp_path / "a.txt"), "-f", str(tmp_path / "empty.txt")]
    assert infer_shell("infer", *files, "Review", "this", "change", stdin="piped\n").exit_code == 0
    assert request_of(infer_shell).prompt == "Review this change\n\nin a file\n\npiped\n"
    assert infer_shell("infer", stdin="only piped").exit_code == 0
    assert request_of(infer_shell).prompt == "only piped"
    assert infer_shell("infer", "What", "is", "-5", "plus", "3?", "--seed", "1", stdin="").exit_code == 0
    assert request_of(infer_shell).prompt == "What is -5 plus 3?"
    assert "Did you mean '--model'?" in infer_shell("infer", "What", "is", "-5", "--seed", "1", "--modl", "echo").stderr
    result = infer_shell("infer", "--file", str(tmp_path / "none.txt"), "hi")
    assert (result.exit_code, "none.txt" in result.stderr) == (2, True)


def test_images_are_shown_before_the_prompt(infer_shell: Shell, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode())
    result = infer_shell("infer", "--image", str(tmp_path / "a"), "--image", str(tmp_path / "b"), "-s", "Be brief.", "what", "is", "it?")
    assert result.exit_code == 0, result.output
    request = request_of(infer_shell)
    assert (request.prompt, request.system) == (None, None)
    system, user = request.messages
    assert (system.role, system.content, user.content) == ("system", "Be brief.", "what is it?")
    assert [(image.data, image.at) for image in user.images] == [(b"a", 0), (b"b", 0)]
    (tmp_path / "a").write_bytes(bytes(16 * 1024 * 1024))
    result = infer_shell("infer", "--image", str(tmp_path / "a"), "hi")
    assert (result.exit_code, "more than 15 MiB" in result.stderr) == (2, True), result.output


def test_silent_pipe_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(infer, "_SLOW_PIPE_SECONDS", 0)
    reading, writing = os.pipe()
    with open(reading) as pipe, open(writing, "w") as other:  # noqa: PTH123
        monkeypatch.setattr("sys.stdin", pipe)
        infer._note_slow_pipe()
        assert "Waiting for the rest of the prompt on stdin" in capsys.readouterr().err
        other.write("x")
        other.flush()
        infer._note_slow_pipe()
        assert capsys.readouterr().err == ""


def test_only_pipes_and_files_are_read_unasked(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    (tmp_path / "file").write_text("")
    ours, theirs = socket.socketpair()
    with ours, theirs, open(reading) as pipe, open(writing, "w"), (tmp_path / "file").open() as file, open(os.devnull) as nothing:  # noqa: PTH123
        assert [infer.is_piped(stdin) for stdin in (pipe, file, nothing, ours.makefile())] == [True, True, False, False]
    assert not infer.is_piped(file)


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        pytest.param(["-"], b"", "the prompt is empty", id="an empty pipe"),
        pytest.param([], b"", "the prompt is empty", id="nothing"),
        pytest.param([" \n"], b"", "the prompt is empty", id="only white space"),
        pytest.param(["-"], b"a\xff", "not valid UTF-8 (byte 1)", id="a pipe that is no UTF-8"),
        pytest.param(["a\udcff"], b"", "the command line is not UTF-8", id="an argument that is no UTF-8"),
        pytest.param(["-"], b"x" * 10_000_000, "stdin is longer than 4096 KiB", id="ten megabytes"),
        pytest.param(["a", "--seed", str(2**64)], b"", "is too large", id="a seed that no wire takes"),
    ],
)
def test_invalid_prompt_is_refused_immediately(infer_shell: Shell, arguments: list[str], stdin: bytes, message: str) -> None:
    result = infer_shell("infer", *arguments, stdin=stdin)
    assert result.exit_code == 2
    assert message in result.stderr
    assert infer_shell.mesh.calls == []


def test_error_mid_answer_keeps_the_text(shell: Shell) -> None:
    async def die() -> None:
        raise errors.WorkerLost("the worker went away", hint="ask again")

    shell.mesh.stream_answer(METHOD, [InferenceChunk("Hel")], RESULT, then=die)
    result = shell("infer", "hi")
    assert (result.exit_code, result.stdout) == (1, "Hel")
    assert result.stderr == "error: the worker went away – ask again\n"


def test_ctrl_c_cancels_the_call(shell: Shell) -> None:
    async def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await Event().wait()

    shell.mesh.stream_answer(METHOD, [InferenceChunk("Hel")], RESULT, then=interrupted)
    result = shell("infer", "hi")
    assert (result.exit_code, result.stdout) == (130, "Hel")
    assert result.stderr == "error: interrupted\n"
    assert shell.mesh.left_early == [METHOD.name]
    # Without the cancellation, the key would let the answer run to its end.
    assert [entry.method for entry in shell.mesh.calls] == [METHOD.name, gateway.cancel_inference.name]


def test_closed_stdout_cancels_the_call(shell: Shell) -> None:
    async def left() -> None:
        raise BrokenPipeError

    shell.mesh.stream_answer(METHOD, [InferenceChunk("Hel")], RESULT, then=left)
    assert shell("infer", "hi").exit_code == 0
    assert shell.mesh.left_early == [METHOD.name]


# --- lost connections ------------------------------------------------------------------------------------------------


class Losses:
    """A gateway whose connections break, each time after one more piece."""

    def __init__(self, shell: Shell, times: int, error: errors.AimeshError) -> None:
        self.left, self.error = times, error
        shell.mesh.stream_script(METHOD, self.run, RESULT)
        shell.mesh.answer(gateway.cancel_inference, Nothing())

    async def run(self, request: ProcessInferenceRequest) -> AsyncIterator[InferenceChunk]:
        after = 0 if request.rest is None else request.rest.after
        for number, word in enumerate(("Hello", ",", " world"), 1):
            if number > after:
                yield InferenceChunk(word, sequence=number)
                if self.left:
                    self.left -= 1
                    raise self.error


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_policy, "DEFAULT", RetryPolicy(first_pause_seconds=0.001, longest_pause_seconds=0.001))


LOST = errors.LinkLost("the link fell silent")
NOTE = "Connection lost. Resuming …\n"


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("times", [1, 2])
def test_lost_connection_loses_no_text(shell: Shell, times: int) -> None:
    Losses(shell, times, LOST)
    result = shell("infer", "hi")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello, world\n", NOTE * times)
    first, *again = [entry.request for entry in shell.mesh.calls]
    assert isinstance(first, ProcessInferenceRequest)
    assert first.idempotency_key
    assert again == [msgspec.structs.replace(first, rest=gateway.Rest(after)) for after in range(1, times + 1)]


@pytest.mark.usefixtures("_quick")
def test_json_output_prints_no_notes(shell: Shell) -> None:
    Losses(shell, 2, LOST)
    result = shell("infer", "hi", "--json")
    assert (json.loads(result.stdout)["text"], result.stderr) == ("Hello, world", "")


@pytest.mark.usefixtures("_quick")
def test_unavailable_gateway_is_retried(shell: Shell) -> None:
    answers: list[errors.AimeshError] = [errors.Draining("it goes"), errors.Unavailable("PostgreSQL is away")]

    async def run(_request: ProcessInferenceRequest) -> AsyncIterator[InferenceChunk]:
        if answers:
            raise answers.pop()
        yield InferenceChunk("Hello", sequence=1)

    shell.mesh.stream_script(METHOD, run, RESULT)
    result = shell("infer", "hi")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello\n", "PostgreSQL is away. Retrying …\n")


def test_each_request_has_its_own_idempotency_key(infer_shell: Shell) -> None:
    infer_shell("infer", "hi")
    infer_shell("infer", "hi")
    keys = [entry.request.idempotency_key for entry in infer_shell.mesh.calls if isinstance(entry.request, ProcessInferenceRequest)]
    assert len({*keys, None}) == 3


def test_custom_idempotency_key(infer_shell: Shell) -> None:
    assert infer_shell("infer", "hi", "--idempotency-key", "mine", "--no-resume").exit_code == 0
    assert infer_shell("infer", "hi", "--idempotency-key", "a\udcff").exit_code == 2
    (sent,) = infer_shell.mesh.calls
    assert isinstance(sent.request, ProcessInferenceRequest)
    assert sent.request.idempotency_key == "mine"


@pytest.mark.parametrize(("options", "key"), [(["--no-resume"], None), (["--no-resume", "--idempotency-key", "mine"], "mine")])
def test_without_resume_the_request_ends_with_the_connection(shell: Shell, options: list[str], key: str | None) -> None:
    Losses(shell, 1, LOST)
    result = shell("infer", "hi", *options)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "Hello", "error: the link fell silent\n")
    (sent,) = shell.mesh.calls
    assert isinstance(sent.request, ProcessInferenceRequest)
    assert sent.request.idempotency_key == key


def test_ctrl_c_while_waiting_ends_immediately_and_cancels_at_the_gateway(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_policy, "DEFAULT", RetryPolicy(seconds=1_000, first_pause_seconds=500, longest_pause_seconds=500))
    Losses(shell, 1, LOST)
    monkeypatch.setattr(infer, "_note_lost", lambda *_what, **_more: os.kill(os.getpid(), signal.SIGINT))
    result = shell("infer", "hi")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "Hello", "error: interrupted\n")
    sent, cancelled = [entry.request for entry in shell.mesh.calls]
    assert isinstance(sent, ProcessInferenceRequest)
    assert cancelled == gateway.CancelInference(sent.idempotency_key or "")


def test_flex_request_may_take_an_hour(infer_shell: Shell) -> None:
    assert infer_shell("infer", "hi").exit_code == infer_shell("infer", "hi", "--flex").exit_code == 0
    live, flex = infer_shell.mesh.calls
    assert isinstance(live.request, ProcessInferenceRequest)
    assert isinstance(flex.request, ProcessInferenceRequest)
    assert (live.request.request.flex, flex.request.request.flex) == (None, True)
