"""What is a right answer to a script."""

import json
from typing import Any

import pytest

from features.model_check.cli import judge, vendor_apis
from features.model_check.cli.judge import Answer
from features.model_check.cli.scripts import SCRIPTS, Call, Script
from features.model_check.cli.vendor_apis import Api
from shared.protocol.agent_requirements import SCRIPTED_CALLS
from tests.features.model_check import scripted

NUMBER = Script("number", (), "", (Call("set", {"n": 1, "s": ("a", "b")}),))
DEEP = Script("deep", (), "", (Call("set", {"o": {"list": [1, {"x": None}]}, "on": True}),))
BOTH = Script("both", (), "", (Call("get", {"x": 1}), Call("get", {"x": 2})))
NONE = Script("none", (), "", (), says="Paris")


def test_scripts_have_different_names_and_questions_and_use_all_kinds_of_answers() -> None:
    assert SCRIPTED_CALLS == len(SCRIPTS) == len({script.name for script in SCRIPTS}) == len({script.ask for script in SCRIPTS})
    kinds = {(min(len(script.right), 2), bool(script.done)) for script in SCRIPTS}
    assert kinds == {(0, False), (1, False), (2, False), (0, True), (1, True)}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_each_script_has_a_right_answer_with_tools_that_it_offers(script: Script) -> None:
    assert judge.find_fault(script, scripted.right(script)) == ""
    tools = {tool.name: tool.parameters for tool in script.tools}
    for call in (*script.right, *(call for call, _ in script.done)):
        assert call.arguments.keys() == tools[call.name]["properties"].keys() == {*tools[call.name]["required"]}


@pytest.mark.parametrize(
    ("script", "answer", "fault"),
    [
        pytest.param(NUMBER, Answer(calls=(("set", '{"s": "b", "n": 1.0}'),)), "", id="another right value, another order"),
        pytest.param(NUMBER, Answer(calls=(("get", '{"n": 1, "s": "a"}'),)), "get instead of set", id="another tool"),
        pytest.param(NUMBER, Answer(calls=(("set", '{"n": 2, "s": "a"}'),)), "set: n is 2 instead of 1", id="another number"),
        pytest.param(NUMBER, Answer(calls=(("set", '{"n": "1", "s": "a"}'),)), 'set: n is "1" instead of 1', id="text for a number"),
        pytest.param(NUMBER, Answer(calls=(("set", '{"n": true, "s": "a"}'),)), "set: n is true instead of 1", id="true is not 1"),
        pytest.param(NUMBER, Answer(calls=(("set", '{"n": 1, "s": "c"}'),)), 'set: s is "c" instead of "a"', id="none of the right values"),
        pytest.param(NUMBER, Answer(calls=(("set", '{"n": 1}'),)), "set: s is missing", id="missing"),
        pytest.param(NUMBER, Answer(calls=(("set", '{"n": 1, "s": "a", "z": 0}'),)), "set: z is too much", id="one more argument"),
        pytest.param(NUMBER, Answer(calls=(("set", '{"n": 1, "s": '),)), "the arguments of set are no JSON object: ", id="cut JSON"),
        pytest.param(NUMBER, Answer(calls=(("set", "[1]"),)), "the arguments of set are no JSON object: ", id="a list"),
        pytest.param(NUMBER, Answer(calls=(("set", ""),)), "set: n is missing", id="nothing"),
        pytest.param(NUMBER, Answer('{"name": "set"}'), "text instead of a call: ", id="a call in words"),
        pytest.param(NUMBER, Answer(), "text instead of a call: ''", id="no answer"),
        pytest.param(DEEP, Answer(calls=(("set", '{"o": {"list": [1, {"x": null}]}, "on": true}'),)), "", id="deep"),
        pytest.param(DEEP, Answer(calls=(("set", '{"o": {"list": [{"x": null}, 1]}, "on": true}'),)), "set: o is ", id="another order"),
        pytest.param(DEEP, Answer(calls=(("set", '{"o": {"list": [1, {}]}, "on": true}'),)), "set: o is ", id="missing below"),
        pytest.param(BOTH, Answer(calls=(("get", '{"x": 2}'), ("get", '{"x": 1}'))), "", id="two in any order"),
        pytest.param(BOTH, Answer(calls=(("get", '{"x": 2}'),)), "get is not called", id="one of two"),
        pytest.param(BOTH, Answer(calls=(("get", '{"x": 2}'),) * 2), "get: x is 2 instead of 1", id="the same twice"),
        pytest.param(BOTH, Answer(calls=tuple(("get", f'{{"x": {x}}}') for x in (1, 2, 3))), "get is one call too many", id="three of two"),
        pytest.param(NONE, Answer("It is Paris."), "", id="words"),
        pytest.param(NONE, Answer("It is Rome."), "the answer is 'It is Rome.'", id="wrong words"),
        pytest.param(NONE, Answer(calls=(("get", "{}"),)), "get is one call too many", id="a call that nobody needs"),
    ],
)
def test_faults(script: Script, answer: Answer, fault: str) -> None:
    found = judge.find_fault(script, answer)
    assert found.startswith(fault) if fault else found == ""


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("api", Api)
@pytest.mark.parametrize("said", [Answer("Hi"), Answer("I do.", (("get", '{"x":"é"}'), ("put", "{}")))], ids=["words", "calls"])
def test_answers_are_read(api: Api, is_streamed: bool, said: Answer) -> None:
    assert vendor_apis.read(api, scripted.show(api, said, is_streamed=is_streamed), is_streamed=is_streamed) == said


@pytest.mark.parametrize(
    ("api", "body", "why"),
    [
        (Api.CHAT, b'data: {"choices": []}\n\ndata: {"error": {"message": "the worker is lost"}}\n\n', "the worker is lost"),
        (Api.RESPONSES, b'data: {"type": "response.failed", "response": {"error": {"message": "lost"}}}\n\n', "lost"),
        (Api.MESSAGES, b'event: error\ndata: {"type": "error", "error": {"type": "x", "message": "lost"}}\n\n', "lost"),
        (Api.CHAT, b"data: <html>\n\n", "malformed"),
        (Api.RESPONSES, b"", "another form"),
        (Api.RESPONSES, b'data: {"response": {"output": [{"type": "message", "content": [1]}]}}\n\n', "another form"),
        (Api.MESSAGES, b'data: {"type": "content_block_delta", "index": 3, "delta": {"text": "x"}}\n\n', "another form"),
        (Api.MESSAGES, b"data: []\n\n", "Expected `object`"),
    ],
)
def test_what_is_no_answer_says_why(api: Api, body: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        vendor_apis.read(api, body, is_streamed=True)


def test_requests_name_the_model_are_bounded_and_nearly_deterministic() -> None:
    for api in Api:
        for script in SCRIPTS:
            body: dict[str, Any] = json.loads(vendor_apis.write(api, "qwen3", script, is_streamed=True))
            assert (body["model"], body["temperature"], body["stream"]) == ("qwen3", 0, True)
            assert 0 < (body.get("max_tokens") or body["max_output_tokens"]) <= 2048
            assert len(body["tools"]) == len(script.tools)
