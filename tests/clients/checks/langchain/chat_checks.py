"""What the checks of both of LangChain's packages share."""

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pydantic
from checklist import Checklist, script
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool

checks = Checklist()
MODEL, SCRIPTED = os.environ["MODEL"], os.environ["SCRIPTED_MODEL"]
#: A red pixel.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
IMAGE = {"type": "image", "base64": PNG, "mime_type": "image/png"}
PERSON = ["Person", {"name": "Ada", "age": 36}]
ROME = ["get_weather", {"city": "Rome"}]

Make = Callable[..., Any]
CommonCheck = Callable[[Make], Any]


@tool
def get_weather(city: str) -> str:
    """Say the weather in a city."""
    return f"18 degrees in {city}"


class Person(pydantic.BaseModel):
    """A person."""

    name: str
    age: int


ADA = Person(name="Ada", age=36)


def report(chat: Any, field: str, *messages: Any, **options: Any) -> Any:
    """Return what reached the model of a field."""
    return json.loads(chat.invoke([*messages, HumanMessage(script(report=[field]))], **options).text)[field]


_common: dict[str, CommonCheck] = {}


def common(*names: str) -> Callable[[CommonCheck], CommonCheck]:
    """Add a check of what every chat model of LangChain has."""

    def add(check: CommonCheck) -> CommonCheck:
        _common.update(dict.fromkeys(names, check))
        return check

    return add


def add_common_checks(name: str, make: Make) -> None:
    """Add them for the model that ``make`` returns with options."""
    for what, check in _common.items():
        checks.add(f"{name}{what}", partial(check, make))


@common(".invoke()")
def _(make: Make) -> None:
    answer = make().invoke(script(say="Hi you"))
    assert isinstance(answer, AIMessage)
    assert answer.text == "Hi you"
    assert answer.response_metadata["model_name"] == SCRIPTED
    assert answer.id


@common(".ainvoke()")
async def _(make: Make) -> None:
    assert (await make().ainvoke(script(say="Hi you"))).text == "Hi you"


@common(".stream()")
def _(make: Make) -> None:
    chunks = list(make().stream(script(say="Hi you")))
    assert len([chunk for chunk in chunks if chunk.text]) == 2
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.text == "Hi you"
    assert whole.response_metadata["model_name"] == SCRIPTED


@common(".astream()")
async def _(make: Make) -> None:
    assert "".join([chunk.text async for chunk in make().astream(script(say="Hi you"))]) == "Hi you"


@common(".batch()", ".abatch()")
async def _(make: Make) -> None:
    prompts = [script(say="Hi"), script(say="Ho")]
    assert [answer.text for answer in await make().abatch(prompts)] == ["Hi", "Ho"]
    assert [answer.text for answer in make().batch(prompts)] == ["Hi", "Ho"]


@common(".astream_events()")
async def _(make: Make) -> None:
    events = [event["event"] async for event in make().astream_events(script(say="Hi you"))]
    assert (events[0], events[-1]) == ("on_chat_model_start", "on_chat_model_end")
    assert events.count("on_chat_model_stream") >= 2


@common(" usage_metadata")
def _(make: Make) -> None:
    usage = make().invoke(script(think="Well, well.", say="Hi you")).usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_token_details"]["cache_read"] == 3


@common(".bind_tools()")
def _(make: Make) -> None:
    answer = make().bind_tools([get_weather]).invoke(script(say="Wait.", calls=[ROME, ROME]))
    assert [(call["name"], call["args"], call["type"]) for call in answer.tool_calls] == [(*ROME, "tool_call")] * 2
    assert answer.text == "Wait."
    assert len({call["id"] for call in answer.tool_calls}) == 2


@common(".bind_tools() of a pydantic class, a function and a dict")
def _(make: Make) -> None:
    def add(a: int, b: int) -> int:
        """Add numbers."""
        return a + b

    schema = {"title": "look", "description": "Looks.", "type": "object", "properties": {"at": {"type": "string"}}}
    tools = report(make().bind_tools([Person, add, schema]), "tools")
    assert [one["function"]["name"] for one in tools] == ["Person", "add", "look"]


@common(".bind_tools() tool_choice")
def _(make: Make) -> None:
    assert report(make().bind_tools([get_weather], tool_choice="any"), "tool_choice") == "required"
    assert report(make().bind_tools([get_weather, Person], tool_choice="Person"), "tools")[0]["function"]["name"] == "Person"


@common(".bind_tools() strict")
def _(make: Make) -> None:
    (one,) = report(make().bind_tools([get_weather], strict=True), "tools")
    assert one["function"]["parameters"]["required"] == ["city"]


@common(".bind_tools() parallel_tool_calls")
def _(make: Make) -> None:
    assert report(make().bind_tools([get_weather], parallel_tool_calls=False), "parallel_tool_calls") is False


@common(" tool calls in a stream")
def _(make: Make) -> None:
    chunks = list(make().bind_tools([get_weather]).stream(script(calls=[ROME])))
    assert len([chunk for chunk in chunks if chunk.tool_call_chunks]) > 1
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [tuple(ROME)]


@common(" ToolMessage")
def _(make: Make) -> None:
    bound, question = make().bind_tools([get_weather]), HumanMessage(script(think="Well.", calls=[ROME, ROME]))
    called = bound.invoke([question])
    results = [get_weather.invoke(call) for call in called.tool_calls]
    assert bound.invoke([question, called, *results]).text == "Results: 18 degrees in Rome, 18 degrees in Rome; images: 0"


@common(" ToolMessage with an image")
def _(make: Make) -> None:
    bound, question = make().bind_tools([get_weather]), HumanMessage(script(calls=[ROME]))
    called = bound.invoke([question])
    result = get_weather.invoke(called.tool_calls[0])
    result.content = [{"type": "text", "text": "A map"}, IMAGE]
    assert bound.invoke([question, called, result]).text == "Results: A map; images: 1"


@common(" SystemMessage")
def _(make: Make) -> None:
    assert report(make(), "messages.0", ("system", "Be kind.")) == {"role": "system", "content": "Be kind."}


@common(" AIMessage")
def _(make: Make) -> None:
    assert report(make(), "messages.1", ("human", "Hi"), ("ai", "Hello"))["content"] == "Hello"


@common(" image block")
def _(make: Make) -> None:
    content = report(make(), "messages.0.content", HumanMessage([{"type": "text", "text": "Look"}, IMAGE]))
    # Anthropic's client joins the messages of one role.
    assert [part["type"] for part in content[:2]] == ["text", "image_url"]


def _structured(method: str, make: Make) -> None:
    prompt = script(calls=[PERSON]) if method == "function_calling" else script(say=json.dumps(PERSON[1]))
    assert make().with_structured_output(Person, method=method).invoke(prompt) == ADA


for method in ("json_schema", "function_calling"):
    common(f".with_structured_output() {method}")(partial(_structured, method))


@common(".with_structured_output() include_raw")
def _(make: Make) -> None:
    found = make().with_structured_output(Person, method="function_calling", include_raw=True).invoke(script(calls=[PERSON]))
    assert (found["parsed"], found["parsing_error"]) == (ADA, None)
    assert found["raw"].tool_calls


@common(".with_structured_output() in a stream")
def _(make: Make) -> None:
    *_, last = make().with_structured_output(Person, method="function_calling").stream(script(calls=[PERSON]))
    assert last == ADA
