"""An answer that another worker resumes is the same at every split, including its visible text."""

import pytest

from services.inference.engine.engine_loop import EngineLoop
from services.inference.engine.engine_messages import AnswerProgress, GenerationAccepted, StartGeneration
from services.inference.engine.kv_slots import KvMode
from services.inference.engine.sampling import Parameters
from services.inference.tool_calls.tool_format import ToolStyle
from shared.api.generation import ChatMessage, Tool
from tests.services.inference.engine.commands import handle
from tests.services.inference.engine.toy_model import ToyModel

TOOLS = (Tool("weather"), Tool("time"))
CALLS = (
    'Grüße. <tool_call>{"name": "weather", "arguments": {"city": "Łódź 😀"}}</tool_call> und '
    '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call> ENGEL <tool_call> no call'
)


def answer(
    prompt: str, delivered: bytes, *, tools: tuple[Tool, ...] = (), stop: tuple[str, ...] = (), logprobs: bool = False
) -> list[AnswerProgress]:
    """A model that repeats its prompt; a token is a byte."""
    model = ToyModel(KvMode.EXACT, context_tokens=1024, pool_tokens=4096, tool_style=ToolStyle.HERMES)
    running = EngineLoop(model, slots=1, mode=KvMode.EXACT)
    parameters = Parameters(0, 1, 0, 5, max_tokens=500, stop=stop, top_logprobs=2 if logprobs else None)
    command = StartGeneration(1, (ChatMessage("user", prompt),), parameters, "", tuple(delivered), "", tools, "request")
    assert isinstance(handle(running, command), GenerationAccepted)
    reports: list[AnswerProgress] = []
    while not running.idle:
        step = running.step()
        assert step is not None
        reports.extend(step.progress)
    return reports


def visible(reports: list[AnswerProgress]) -> tuple[str, bytes, tuple[object, ...], tuple[object, ...]]:
    return (
        "".join(one.text for one in reports),
        bytes(token for one in reports for token in one.token_ids),
        tuple(call for one in reports for call in one.tool_calls),
        tuple(chance for one in reports for chance in one.logprobs),
    )


@pytest.mark.parametrize(
    ("prompt", "tools", "stop", "logprobs"),
    [
        pytest.param(CALLS, TOOLS, (), False, id="calls of tools"),
        pytest.param(CALLS, TOOLS, ("ENGEL",), False, id="calls of tools and a stop sequence"),
        pytest.param("😀 ä ENDE EN END", (), ("END ", "ä Z"), False, id="characters of several tokens, and stop sequences"),
        pytest.param("one two", (), (), True, id="log probabilities"),
    ],
)
def test_resume_at_every_split(prompt: str, tools: tuple[Tool, ...], stop: tuple[str, ...], logprobs: bool) -> None:
    whole = answer(prompt, b"", tools=tools, stop=stop, logprobs=logprobs)
    tokens = visible(whole)[1]
    if tools:
        assert [call.name for one in whole for call in one.tool_calls] == ["weather", "time"]
    for split in range(1, len(tokens)):
        rest = answer(prompt, tokens[:split], tools=tools, stop=stop, logprobs=logprobs)
        # A step gives one token; the end token of the model gives none, and is in the rest.
        assert visible([*whole[:split], *rest]) == visible(whole)
        assert rest[-1].finish == whole[-1].finish
