"""ChatOpenAI with the chat API."""

import json
from functools import partial
from typing import Any

import openai
from checklist import error_of, script
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

from checks.langchain.chat_checks import ADA, IMAGE, MODEL, PERSON, PNG, SCRIPTED, Person, add_common_checks, checks, get_weather, report


def make(**options: Any) -> ChatOpenAI:
    return ChatOpenAI(**{"model": SCRIPTED, "max_retries": 0, "include_response_headers": True, **options})


def ignored(answer: Any) -> list[str]:
    """Return what the answer says had no effect."""
    found: str = answer.response_metadata["headers"].get("x-aimesh-ignored", "")
    return found.split(", ") if found else []


add_common_checks("ChatOpenAI", make)


def _reaches(name: str, value: Any, there: str) -> None:
    assert report(make(**{name: value}), there) == value


for name, value in {
    "temperature": 0.25,
    "top_p": 0.5,
    "frequency_penalty": 0.5,
    "presence_penalty": -0.5,
    "seed": 7,
    "max_tokens": 77,
    "reasoning_effort": "low",
}.items():
    checks.add(f"ChatOpenAI.{name}", partial(_reaches, name, value, name))


@checks("ChatOpenAI.logit_bias")
def _() -> None:
    assert report(make(logit_bias={42: -50}), "logit_bias") == {"42": -50}


@checks("ChatOpenAI.stop")
def _() -> None:
    assert report(make(stop=["END"]), "stop") == ["END"]
    assert report(make(), "stop", stop=["END"]) == ["END"]


@checks("ChatOpenAI.n")
def _() -> None:
    found = make(n=2).generate([[HumanMessage(script(say="Hi"))]])
    assert [each.text for each in found.generations[0]] == ["Hi", "Hi"]


@checks("ChatOpenAI.logprobs", "ChatOpenAI.top_logprobs")
def _() -> None:
    tokens = make(logprobs=True, top_logprobs=2).invoke(script(say="Hi you")).response_metadata["logprobs"]["content"]
    assert [(token["token"], len(token["top_logprobs"])) for token in tokens] == [("Hi ", 2), ("you", 2)]


@checks("ChatOpenAI.streaming")
def _() -> None:
    assert make(streaming=True).invoke(script(say="Hi you")).text == "Hi you"


@checks("ChatOpenAI.stream_usage")
def _() -> None:
    (used,) = [chunk.usage_metadata for chunk in make(stream_usage=True).stream(script(say="Hi you")) if chunk.usage_metadata]
    assert used["total_tokens"] == used["input_tokens"] + used["output_tokens"]
    assert used["output_tokens"] == 2


@checks("ChatOpenAI.model_name", "ChatOpenAI.openai_api_base", "ChatOpenAI.openai_api_key")
def _() -> None:
    error = error_of(openai.AuthenticationError, partial(make(api_key="wrong").invoke, "Hi"))
    assert error.code == "invalid_api_key"
    assert make().invoke("Hi").response_metadata["model_name"] == SCRIPTED


@checks("ChatOpenAI.model_kwargs")
def _() -> None:
    assert ignored(make(model_kwargs={"user": "ada"}).invoke("Hi")) == ["user"]


@checks("ChatOpenAI.extra_body")
def _() -> None:
    assert report(make(extra_body={"top_k": 5, "chat_template_kwargs": {"a": 1}}), "top_k") == 5
    assert ignored(make(extra_body={"use_beam_search": True}).invoke("Hi")) == ["use_beam_search"]


@checks("ChatOpenAI.default_headers", "ChatOpenAI.include_response_headers")
def _() -> None:
    strict = make(default_headers={"x-aimesh-strict": "1"}, extra_body={"next_year": 1})
    assert error_of(openai.BadRequestError, partial(strict.invoke, "Hi")).param == "next_year"
    assert make().invoke("Hi").response_metadata["headers"]["x-request-id"]


@checks("ChatOpenAI.default_query")
def _() -> None:
    assert make(default_query={"beta": "true"}).invoke("Hi").text


def _ignored(name: str, value: Any) -> None:
    assert ignored(make(**{name: value}).invoke("Hi")) == [name]


@checks("ChatOpenAI.service_tier")
def _() -> None:
    assert make(service_tier="flex").invoke("Hi").response_metadata["service_tier"] == "flex"


for name, value in {"store": True, "prompt_cache_options": {"ttl": "30m"}, "verbosity": "low"}.items():
    checks.add(f"ChatOpenAI.{name}", partial(_ignored, name, value))


@checks("ChatOpenAI.disabled_params")
def _() -> None:
    bound = make(disabled_params={"parallel_tool_calls": None}).with_structured_output(Person, method="function_calling")
    assert bound.invoke(script(calls=[PERSON])) == ADA


@checks("ChatOpenAI.with_structured_output() json_mode")
def _() -> None:
    assert make().with_structured_output(Person, method="json_mode").invoke(script(say=json.dumps(PERSON[1]))) == ADA


@checks("ChatOpenAI.with_structured_output() strict")
def _() -> None:
    assert make().with_structured_output(Person, strict=True).invoke(script(say=json.dumps(PERSON[1]))) == ADA


@checks("ChatOpenAI image_url block")
def _() -> None:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}}
    assert report(make(), "messages.0.content", HumanMessage([picture]))[0]["type"] == "image_url"
    assert IMAGE["base64"] == PNG


@checks("ChatOpenAI audio block", "ChatOpenAI file block")
def _() -> None:
    for kind, mime in (("audio", "audio/wav"), ("file", "application/pdf")):
        part = {"type": kind, "base64": "AAAA", "mime_type": mime, "filename": "a"}
        error = error_of(openai.BadRequestError, partial(make().invoke, [HumanMessage([part])]))
        assert "audio and files are not supported" in error.message, error.message


@checks("ChatOpenAI context length")
def _() -> None:
    error = error_of(openai.BadRequestError, partial(make(model=MODEL).invoke, "word " * 50_000))
    assert error.code == "context_length_exceeded"
    assert type(error).__name__ == "OpenAIContextOverflowError"


@checks("create_agent()")
def _() -> None:
    from langchain.agents import create_agent

    turns = [{"calls": [["get_weather", {"city": "Rome"}]]}, {"say": "It is warm."}]
    agent = create_agent(make(), [get_weather], system_prompt="Be kind.")
    found = agent.invoke({"messages": [{"role": "user", "content": script(turns=turns)}]})["messages"]
    assert [message.type for message in found] == ["human", "ai", "tool", "ai"]
    assert found[-1].text == "It is warm."


@checks("create_agent() response_format")
def _() -> None:
    from langchain.agents import create_agent

    agent = create_agent(make(), [], response_format=Person)
    assert agent.invoke({"messages": [{"role": "user", "content": script(calls=[PERSON])}]})["structured_response"] == ADA


# --- completions and embeddings -------------------------------------------------------------------------------------------------


@checks("OpenAI.invoke()", "OpenAI.stream()")
def _() -> None:
    model = OpenAI(model=MODEL, max_tokens=5, max_retries=0)
    assert model.invoke("One, two,")
    assert "".join(model.stream("One, two,"))


def embeddings(**options: Any) -> OpenAIEmbeddings:
    # By default it sends OpenAI's token ids, which mean something else to other models.
    return OpenAIEmbeddings(model=MODEL, check_embedding_ctx_length=False, max_retries=0, **options)


@checks("OpenAIEmbeddings.embed_documents()")
def _() -> None:
    assert len(embeddings().embed_documents(["Rome", "Paris"])) == 2


@checks("OpenAIEmbeddings.embed_query()")
def _() -> None:
    assert embeddings().embed_query("Rome") == embeddings().embed_documents(["Rome"])[0]


@checks("OpenAIEmbeddings.aembed_documents()")
async def _() -> None:
    assert len(await embeddings().aembed_documents(["Rome"])) == 1


@checks("OpenAIEmbeddings.dimensions")
def _() -> None:
    assert len(embeddings(dimensions=16).embed_query("Rome")) == 16
