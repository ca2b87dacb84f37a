"""`aicli infer`: what it asks, what it prints, and that an interrupted answer is cancelled."""

import json
import os
import signal
from asyncio import Event
from collections.abc import AsyncIterator
from uuid import UUID

import msgspec
import pytest

from cli.ask import infer
from shared import errors
from shared.api import gateway
from shared.api.gateway import InferenceChunk, InferenceRequest, InferenceResult, ProcessInferenceRequest
from shared.api.generation import Usage
from shared.api.method import Nothing
from shared.timing import retry_policy
from shared.timing.retry_policy import RetryPolicy
from shared.types import FinishReason, MicroCredits, ModelName, RequestId
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
def talking(shell: Shell) -> Shell:
    shell.mesh.stream_answer(METHOD, [InferenceChunk("Hello"), InferenceChunk(" world")], RESULT)
    return shell


def request_of(shell: Shell) -> InferenceRequest:
    asked = shell.mesh.asked[-1].request
    assert isinstance(asked, ProcessInferenceRequest)
    return asked.request


def test_the_answer_is_all_of_stdout(talking: Shell) -> None:
    result = talking("infer", "hi", "-v")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello world\n", "")
    assert talking.mesh.asked[0].credential == KEY
    assert talking.mesh.left_early == []


def test_no_stream_prints_the_same(talking: Shell) -> None:
    assert talking("infer", "hi", "--no-stream").stdout == "Hello world\n"


def test_a_pipe_gets_what_the_model_wrote(shell: Shell) -> None:
    shell.mesh.stream_answer(METHOD, [InferenceChunk("a\x1b[0m\n")], RESULT)
    assert shell("infer", "hi").stdout == "a\x1b[0m\n"


def test_json_is_one_object(talking: Shell) -> None:
    assert json.loads(talking("infer", "hi", "--json").stdout) == {
        "text": "Hello world",
        "request_id": "00000000-0000-0000-0000-000000000007",
        "model": "smollm2",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 4, "completion_tokens": 2, "cached_tokens": 0, "total_tokens": 6},
        "response_time_ms": 30,
        "first_token_ms": 10,
        "cost_micro": 0,
        "clamped_to": None,
        "cached": False,
    }


def test_an_answer_that_the_credits_cut_short_says_so(shell: Shell) -> None:
    cut = msgspec.structs.replace(RESULT, clamped_to=2, finish_reason=FinishReason.LENGTH)
    shell.mesh.stream_answer(METHOD, [InferenceChunk("Hello world")], cut)
    result = shell("infer", "hi")
    assert result.stdout == "Hello world\n"
    assert result.stderr == "The answer was cut off after 2 tokens: not enough credits. See aicli usage.\n"
    assert json.loads(shell("infer", "hi", "--json").stdout)["clamped_to"] == 2
    # It ended by itself before that.
    shell.mesh.stream_answer(METHOD, [InferenceChunk("Hello world")], msgspec.structs.replace(RESULT, clamped_to=5))
    assert shell("infer", "hi").stderr == ""


def test_the_summary_says_what_it_cost() -> None:
    assert infer._summary(RESULT) == "smollm2: 4 + 2 tokens, first after 10 ms, 50.0 tokens/s"
    paid = msgspec.structs.replace(RESULT, cost_micro=MicroCredits(800), cached=True)
    assert infer._summary(paid).endswith(" tokens/s, 0.0008 credits, answered from the cache")


def test_every_option_reaches_the_gateway(talking: Shell) -> None:
    asked = ["--model", "m", "--system", "s", "--stop", "a", "--stop", "b"]
    numbers = ["--max-tokens", "5", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "3", "--seed", "-1"]
    assert talking("infer", *asked, *numbers, "--", "-x").exit_code == 0
    assert request_of(talking) == InferenceRequest(
        prompt="-x",
        model=ModelName("m"),
        system="s",
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        stop=("a", "b"),
        seed=-1,
    )


def test_what_is_not_given_is_left_to_the_worker(talking: Shell) -> None:
    talking("infer", "hi")
    assert request_of(talking) == InferenceRequest(prompt="hi")


def test_a_dash_reads_stdin(talking: Shell) -> None:
    assert talking("infer", "-", stdin="from\na pipe").exit_code == 0
    assert request_of(talking).prompt == "from\na pipe"


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        pytest.param(["-"], b"", "the prompt is empty", id="an empty pipe"),
        pytest.param([" \n"], b"", "the prompt is empty", id="only white space"),
        pytest.param(["-"], b"a\xff", "not valid UTF-8 (byte 1)", id="a pipe that is no UTF-8"),
        pytest.param(["a\udcff"], b"", "the command line is not UTF-8", id="an argument that is no UTF-8"),
        pytest.param(["-"], b"x" * 10_000_000, "longer than 1024 KiB", id="ten megabytes"),
        pytest.param(["a", "--seed", str(2**64)], b"", "is too large", id="a seed that no wire takes"),
    ],
)
def test_a_prompt_that_cannot_be_sent_is_refused_at_once(talking: Shell, arguments: list[str], stdin: bytes, says: str) -> None:
    result = talking("infer", *arguments, stdin=stdin)
    assert result.exit_code == 2
    assert says in result.stderr
    assert talking.mesh.asked == []


def test_an_error_on_the_way_keeps_what_was_said(shell: Shell) -> None:
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
    # Under its key it would be made to its end.
    assert [entry.method for entry in shell.mesh.asked] == [METHOD.name, gateway.cancel_inference.name]


def test_a_reader_that_leaves_cancels_the_call(shell: Shell) -> None:
    async def left() -> None:
        raise BrokenPipeError

    shell.mesh.stream_answer(METHOD, [InferenceChunk("Hel")], RESULT, then=left)
    assert shell("infer", "hi").exit_code == 0
    assert shell.mesh.left_early == [METHOD.name]


# --- connections that are lost ---------------------------------------------------------------------------------------


class Losses:
    """A gateway whose connections break, each time behind the next piece."""

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
def test_a_lost_connection_loses_nothing_of_the_answer(shell: Shell, times: int) -> None:
    Losses(shell, times, LOST)
    result = shell("infer", "hi")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello, world\n", NOTE * times)
    first, *again = [entry.request for entry in shell.mesh.asked]
    assert isinstance(first, ProcessInferenceRequest)
    assert first.idempotency_key
    assert again == [msgspec.structs.replace(first, rest=gateway.Rest(after)) for after in range(1, times + 1)]


@pytest.mark.usefixtures("_quick")
def test_a_script_that_reads_objects_gets_no_note(shell: Shell) -> None:
    Losses(shell, 2, LOST)
    result = shell("infer", "hi", "--json")
    assert (json.loads(result.stdout)["text"], result.stderr) == ("Hello, world", "")


@pytest.mark.usefixtures("_quick")
def test_a_gateway_that_cannot_answer_yet_is_asked_again(shell: Shell) -> None:
    answers: list[errors.AimeshError] = [errors.Draining("it goes"), errors.Unavailable("PostgreSQL is away")]

    async def run(_request: ProcessInferenceRequest) -> AsyncIterator[InferenceChunk]:
        if answers:
            raise answers.pop()
        yield InferenceChunk("Hello", sequence=1)

    shell.mesh.stream_script(METHOD, run, RESULT)
    result = shell("infer", "hi")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello\n", "The gateway isn't answering. Retrying …\n")


def test_each_request_has_a_key_of_its_own(talking: Shell) -> None:
    talking("infer", "hi")
    talking("infer", "hi")
    keys = [entry.request.idempotency_key for entry in talking.mesh.asked if isinstance(entry.request, ProcessInferenceRequest)]
    assert len({*keys, None}) == 3


def test_a_key_of_ones_own(talking: Shell) -> None:
    assert talking("infer", "hi", "--idempotency-key", "mine", "--no-resume").exit_code == 0
    assert talking("infer", "hi", "--idempotency-key", "a\udcff").exit_code == 2
    (asked,) = talking.mesh.asked
    assert isinstance(asked.request, ProcessInferenceRequest)
    assert asked.request.idempotency_key == "mine"


@pytest.mark.parametrize(("options", "key"), [(["--no-resume"], None), (["--no-resume", "--idempotency-key", "mine"], "mine")])
def test_who_does_not_want_it_ends_with_the_connection(shell: Shell, options: list[str], key: str | None) -> None:
    Losses(shell, 1, LOST)
    result = shell("infer", "hi", *options)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "Hello", "error: the link fell silent\n")
    (asked,) = shell.mesh.asked
    assert isinstance(asked.request, ProcessInferenceRequest)
    assert asked.request.idempotency_key == key


def test_ctrl_c_while_it_waits_ends_at_once_and_the_gateway_is_told(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_policy, "DEFAULT", RetryPolicy(seconds=1_000, first_pause_seconds=500, longest_pause_seconds=500))
    Losses(shell, 1, LOST)
    monkeypatch.setattr(infer, "_say_lost", lambda **_: os.kill(os.getpid(), signal.SIGINT))
    result = shell("infer", "hi")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "Hello", "error: interrupted\n")
    asked, cancelled = [entry.request for entry in shell.mesh.asked]
    assert isinstance(asked, ProcessInferenceRequest)
    assert cancelled == gateway.CancelInference(asked.idempotency_key or "")
