"""Every field and helper of the Responses API; items, tools and events have files of their own."""

import json
from functools import partial
from typing import Any

import openai
import pydantic
from checklist import error_of, script

from checks.openai.client import NO_EFFECT, SCRIPTED, checks, client, has_no_effect, is_refused, works

create = client.responses.with_raw_response.create


class Person(pydantic.BaseModel):
    name: str
    age: int


PERSON = '{"name": "Ada", "age": 36}'


def said(*items: Any, **turn: Any) -> dict[str, Any]:
    """Return the fields of a request to the scripted model."""
    return {"model": SCRIPTED, "input": [*items, {"role": "user", "content": script(**turn)}]}


def report(field: str, *items: Any, **fields: Any) -> Any:
    """Return what reached the model of a field."""
    return json.loads(works(create, **said(*items, report=[field]), **fields).output_text)[field]


# --- fields with an effect ------------------------------------------------------------------------------------------------------


def _reaches(name: str, value: Any, there: str) -> None:
    assert report(there, **{name: value}) == value


for name, value, there in (("temperature", 0.25, "temperature"), ("top_p", 0.5, "top_p"), ("max_output_tokens", 77, "max_tokens")):
    checks.add(f"responses.{name}", partial(_reaches, name, value, there))


@checks("responses.model")
def _() -> None:
    assert works(create, **said(say="Hi")).model == SCRIPTED


@checks("responses.input", "responses answer output_text")
def _() -> None:
    assert works(create, model=SCRIPTED, input=script(say="Hi")).output_text == "Hi"


@checks("responses.instructions")
def _() -> None:
    assert report("messages.0", instructions="Be kind.") == {"role": "system", "content": "Be kind."}
    assert works(create, **said(say="Hi"), instructions="Be kind.").instructions == "Be kind."


@checks("responses.text format json_schema")
def _() -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": False}
    form = {"type": "json_schema", "name": "person", "description": "One.", "strict": True, "schema": schema}
    assert report("response_format", text={"format": form})["json_schema"]["schema"] == schema
    answer = works(create, **said(say="{}"), text={"format": form})
    assert (answer.text.format.type, answer.text.format.name) == ("json_schema", "person")


@checks("responses.text")
def _() -> None:
    assert report("response_format", text={"format": {"type": "json_object"}})["type"] == "json_object"
    assert report("response_format", text={"format": {"type": "text"}}) is None


@checks("responses.text verbosity")
def _() -> None:
    assert has_no_effect(create, "text.verbosity", **said(say="Hi"), text={"verbosity": "low"}).output_text == "Hi"


@checks("responses.metadata")
def _() -> None:
    assert works(create, **said(say="Hi"), metadata={"project": "x"}).metadata == {"project": "x"}


@checks("responses.top_logprobs")
def _() -> None:
    tokens = works(create, **said(say="Hi you"), top_logprobs=2).output[0].content[0].logprobs
    assert [(token.token, token.logprob, len(token.top_logprobs)) for token in tokens] == [("Hi ", -0.5, 2), ("you", -0.5, 2)]


@checks("responses.include")
def _() -> None:
    (message,) = works(create, **said(say="Hi"), include=["message.output_text.logprobs"]).output
    assert [token.token for token in message.content[0].logprobs] == ["Hi"]
    others = ["reasoning.encrypted_content", "web_search_call.action.sources", "file_search_call.results", "code_interpreter_call.outputs"]
    assert create(**said(say="Hi"), include=others).parse().output_text == "Hi"


@checks("responses.reasoning")
def _() -> None:
    assert report("reasoning_effort", reasoning={"effort": "low"}) == "low"
    assert works(create, **said(say="Hi"), reasoning={"effort": "high"}).reasoning.effort == "high"


@checks("responses.reasoning summary")
def _() -> None:
    thoughts, _ = works(create, **said(think="Well.", say="Hi"), reasoning={"summary": "auto"}).output
    assert [(part.type, part.text) for part in thoughts.summary] == [("summary_text", "Well.")]


for name, value in (("context", "all_turns"), ("mode", "standard")):
    checks.add(
        f"responses.reasoning {name}", partial(has_no_effect, create, f"reasoning.{name}", **said(say="Hi"), reasoning={name: value})
    )


@checks("responses.reasoning generate_summary")
def _() -> None:
    has_no_effect(create, "reasoning.generate_summary", **said(say="Hi"), reasoning={"generate_summary": "auto"})


@checks("responses.stream")
def _() -> None:
    events = list(client.responses.create(**said(say="Hi you"), stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output_text == "Hi you"


@checks("responses.stream_options")
def _() -> None:
    fields = {"stream": True, "stream_options": {"include_obfuscation": False}}
    has_no_effect(create, "stream_options.include_obfuscation", **said(say="Hi"), **fields)


@checks("responses extra_body")
def _() -> None:
    has_no_effect(create, "next_year", **said(say="Hi"), extra_body={"next_year": 1})


# --- fields without effect, and refused ones ------------------------------------------------------------------------------------


def _ignored(name: str, value: Any) -> None:
    assert has_no_effect(create, name, **said(say="Hi"), **{name: value}).output_text == "Hi"


def _refused(name: str, value: Any, sentence: str) -> None:
    is_refused(create, sentence, **said(say="Hi"), **{name: value}, param=name)


IGNORED = {
    **NO_EFFECT,
    "max_tool_calls": 3,
    "truncation": "auto",
    "context_management": [{"type": "compaction", "compact_threshold": 1000}],
    "background_options": {"completion_window": "soonest"},
    "image": {"context_compression": "auto"},
    "access_programs": {"cyber": "standard"},
}
for name, value in IGNORED.items():
    checks.add(f"responses.{name}", partial(_ignored, name, value))


@checks("responses.service_tier")
def _() -> None:
    assert works(create, **said(say="Hi"), service_tier="flex").service_tier == "flex"


STORED = "whole conversation as input"
checks.add("responses.previous_response_id", partial(_refused, "previous_response_id", "resp_1", STORED))
checks.add("responses.conversation", partial(_refused, "conversation", "conv_1", STORED))
checks.add("responses.prompt", partial(_refused, "prompt", {"id": "pmpt_1"}, "prompts are not stored"))
checks.add("responses.moderation", partial(_refused, "moderation", {"model": "omni-moderation-latest"}, "policies decide"))


@checks("responses.store")
def _() -> None:
    assert works(create, **said(say="Hi"), store=False).store is False
    assert works(create, **said(say="Hi"), store=True).store is True


# --- answers --------------------------------------------------------------------------------------------------------------------


@checks("responses answer")
def _() -> None:
    answer = works(create, **said(say="Hi"), temperature=0.5)
    assert (answer.object, answer.status, answer.temperature, answer.error, answer.incomplete_details) == (
        "response",
        "completed",
        0.5,
        None,
        None,
    )
    assert answer.completed_at >= answer.created_at > 1_700_000_000
    assert (answer.background, answer.parallel_tool_calls, answer.tool_choice, answer.tools) == (False, True, "auto", [])
    assert (answer.truncation, answer.previous_response_id, answer.max_tool_calls) == ("disabled", None, None)
    assert answer.id.startswith("resp_")


@checks("responses answer usage")
def _() -> None:
    usage = works(create, **said(think="Well, well.", say="Hi you")).usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert (usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens) == (3, 2)
    assert usage.input_tokens_details.cache_write_tokens == 0


@checks("responses answer incomplete_details")
def _() -> None:
    answer = works(create, **said(say="Hi", finish="length"))
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")


@checks("responses answer model_not_found")
def _() -> None:
    error = error_of(openai.NotFoundError, partial(create, model="gpt-9", input="Hi"))
    assert (error.code, error.param) == ("model_not_found", "model")


# --- helpers --------------------------------------------------------------------------------------------------------------------


@checks("responses.parse()")
def _() -> None:
    answer = client.responses.parse(**said(say=PERSON), text_format=Person)
    assert answer.output_parsed == Person(name="Ada", age=36)


@checks("responses.stream()")
def _() -> None:
    with client.responses.stream(**said(say=PERSON), text_format=Person) as stream:
        deltas = [event for event in stream if event.type == "response.output_text.delta"]
        assert stream.get_final_response().output_parsed == Person(name="Ada", age=36)
    assert deltas[-1].snapshot == PERSON


@checks("responses AsyncOpenAI")
async def _() -> None:
    async with openai.AsyncOpenAI(max_retries=0) as async_client, async_client.responses.stream(**said(say="Hi you")) as stream:
        texts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
    assert "".join(texts) == "Hi you"


@checks("responses with_streaming_response")
def _() -> None:
    with client.responses.with_streaming_response.create(**said(say="Hi"), stream=True) as answer:
        names = [line.removeprefix("event: ") for line in answer.iter_lines() if line.startswith("event: ")]
    assert names[0] == "response.created"
    assert names[-1] == "response.completed"


@checks("responses.input_tokens.count()")
def _() -> None:
    counted = client.responses.input_tokens.count(model=SCRIPTED, input="Hello there.", instructions="Be kind.")
    assert counted.object == "response.input_tokens"
    assert counted.input_tokens > 3


def _not_stored(name: str) -> None:
    answer = works(create, **said(say="Hi"))
    error = error_of(openai.NotFoundError, partial(getattr(client.responses, name), answer.id))
    assert "those in the background" in error.message, error.message


for name in ("retrieve", "delete", "cancel"):
    checks.add(f"responses.{name}() without background", partial(_not_stored, name))


@checks("responses.input_items()")
def _() -> None:
    answer = works(create, **said(say="Hi"))
    error_of((openai.BadRequestError, openai.NotFoundError), partial(client.responses.input_items.list, answer.id))


@checks("responses.compact()")
def _() -> None:
    error_of((openai.BadRequestError, openai.NotFoundError), partial(client.responses.compact, model=SCRIPTED, input="Hi"))
