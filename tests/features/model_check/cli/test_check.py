"""`aicli models check`."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable

import pytest

from features.model_check import contract
from features.model_check.cli.scripts import SCRIPTS
from features.model_check.cli.vendor_apis import PATHS
from shared import errors
from shared.api import gateway
from shared.api.gateway import HttpPart, HttpRequest
from shared.api.method import Nothing
from shared.types import ModelName
from tests.cli.fake_mesh import Shell
from tests.features.model_check import scripted

BUILDS = contract.ModelBuilds(ModelName("qwen3"), ("a" * 64,))
LINE = "qwen3: tools 47 of 50\n"


def answer(request: HttpRequest) -> bytes:
    body = json.loads(request.body)
    api = next(api for api, path in PATHS.items() if path == request.path)
    messages = body.get("messages") or body["input"]
    said = scripted.answer(next(message["content"] for message in messages if message.get("role") == "user"))
    return scripted.show(api, said, is_streamed=body["stream"])


def answer_with(shell: Shell, make: Callable[[HttpRequest], HttpPart]) -> None:
    async def run(request: HttpRequest) -> AsyncIterator[HttpPart]:
        found = make(request)
        yield HttpPart(found.body[:20], found.status or 200)
        yield HttpPart(found.body[20:])

    shell.mesh.stream_script(gateway.serve_http, run, Nothing())


@pytest.fixture(autouse=True)
def _mesh(shell: Shell) -> None:
    shell.mesh.answer(contract.find_model_builds, BUILDS)
    shell.mesh.answer(contract.record_model_check, Nothing())
    answer_with(shell, lambda request: HttpPart(answer(request)))


def recorded(shell: Shell) -> list[object]:
    return [call.request for call in shell.mesh.calls if call.method == contract.record_model_check.name]


def test_result_is_shown_and_recorded(shell: Shell) -> None:
    result = shell("models", "check", "qwen3")
    assert (result.exit_code, result.stdout) == (0, LINE)
    assert recorded(shell) == [contract.RecordModelCheck("qwen3", BUILDS.builds, 47)]
    asked = [call.request for call in shell.mesh.calls if isinstance(call.request, HttpRequest)]
    assert len(asked) == len(SCRIPTS)
    kinds = {(request.path, json.loads(request.body)["stream"]) for request in asked}
    assert kinds == {(path, is_streamed) for path in PATHS.values() for is_streamed in (False, True)}
    assert all((b"cache-control", b"no-store") in request.headers for request in asked)


def test_wrong_answers_are_shown_on_request_and_all_as_json(shell: Shell) -> None:
    lines = shell("models", "check", "qwen3", "-v").stdout.splitlines(keepends=True)
    assert lines == [
        "one of twenty (chat, streamed): delete_branch: force is true instead of false\n",
        "matrices (responses, streamed): text instead of a call: 'I would multiply them.'\n",
        "knowledge (messages): send_email is one call too many\n",
        LINE,
    ]
    shown = json.loads(shell("models", "check", "qwen3", "--json").stdout)
    assert {key: value for key, value in shown.items() if key != "calls"} == {
        "model": "qwen3", "right_calls": 47, "of": 50, "is_recorded": True,
    }  # fmt: skip
    assert shown["calls"][0] == {"name": "one tool", "api": "chat", "is_streamed": False, "fault": ""}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.NotAllowed("no"), "The result is only shown: the mesh keeps those of administrators."),
        (errors.NotFound("no worker serves a model 'qwen3' that answers"), "only shown: no worker serves a model 'qwen3' that answers."),
        (errors.UnknownMethod("no gateway has the feature model_check"), "only shown: no gateway has the feature model_check."),
    ],
)
def test_what_nobody_may_record_is_only_shown(shell: Shell, error: errors.AimeshError, said: str) -> None:
    shell.mesh.answer(contract.find_model_builds, error)
    result = shell("models", "check", "qwen3")
    assert (result.exit_code, result.stdout) == (0, LINE)
    assert said in result.stderr
    assert recorded(shell) == []


def test_a_model_that_has_changed_keeps_no_result(shell: Shell) -> None:
    shell.mesh.answer(contract.record_model_check, errors.NotFound("qwen3 has changed during the check"))
    result = shell("models", "check", "qwen3", "--json")
    assert (result.exit_code, json.loads(result.stdout)["is_recorded"], json.loads(result.stdout)["right_calls"]) == (0, False, 47)
    assert "only shown: qwen3 has changed during the check." in result.stderr


def test_failed_and_refused_requests_are_wrong(shell: Shell) -> None:
    refusals = iter((
        HttpPart(b'{"error": {"message": "the context has 512 tokens"}}', 400),
        HttpPart(b"<html>", 502),
        HttpPart(b'{"type": "error", "error": {"type": "api_error", "message": "lost"}}', 503),
        HttpPart(b"{}", 200),
        HttpPart(b"<html>", 200),
    ))  # fmt: skip
    answer_with(shell, lambda request: next(refusals, None) or HttpPart(answer(request)))
    result = shell("models", "check", "qwen3", "-v")
    assert [line.partition("): ")[2] for line in result.stdout.splitlines()[:5]] == [
        "no answer: the context has 512 tokens",
        "no answer: status 502",
        "no answer: lost",
        "text instead of a call: ''",
        "no answer that can be read: JSON is malformed: invalid character (byte 0)",
    ]
    assert result.stdout.endswith("tools 42 of 50\n")
    assert recorded(shell) == [contract.RecordModelCheck("qwen3", BUILDS.builds, 42)]


@pytest.mark.parametrize(
    "kind", [errors.NotAuthenticated, errors.BudgetExhausted, errors.PolicyForbidden, errors.UnknownModel, errors.Limited]
)
def test_refusals_of_the_caller_say_nothing_of_the_model(shell: Shell, kind: type[errors.AimeshError]) -> None:
    answer_with(shell, lambda _request: HttpPart(b'{"error": {"message": "not you, not now"}}', kind.status))
    result = shell("models", "check", "qwen3")
    assert result.exit_code > 0
    assert "not you, not now" in result.stderr
    assert recorded(shell) == []
    assert sum(isinstance(call.request, HttpRequest) for call in shell.mesh.calls) == 1


def test_ctrl_c_ends_it_and_records_nothing(shell: Shell) -> None:
    async def run(request: HttpRequest) -> AsyncIterator[HttpPart]:
        yield HttpPart(answer(request), 200)
        if len(shell.mesh.calls) > 10:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()

    shell.mesh.stream_script(gateway.serve_http, run, Nothing())
    result = shell("models", "check", "qwen3")
    assert result.exit_code == 130
    assert (result.stdout, recorded(shell)) == ("", [])
    assert shell.mesh.left_early == [gateway.serve_http.name]
