"""LangChain's langchain-openai."""

import os
import re

import pydantic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

MODEL = os.environ["MODEL"]
chat = ChatOpenAI(model=MODEL, max_tokens=100, max_retries=0)


@tool
def get_weather(city: str) -> str:
    """Say the weather in a city."""
    return f"18 degrees in {city}"


class Person(pydantic.BaseModel):
    """A person."""

    name: str = pydantic.Field(max_length=20)
    age: int = pydantic.Field(ge=0, le=120)


assert chat.invoke("Say hello.").content
assert [chunk for chunk in chat.stream("Say hello.") if chunk.content]
question = HumanMessage("What is the weather in Rome?")
called = chat.bind_tools([get_weather], tool_choice="required", parallel_tool_calls=False).invoke([question])
(call,) = called.tool_calls
chat.bind_tools([get_weather]).invoke([question, called, ToolMessage("18 degrees", tool_call_id=call["id"])])
for method in ("json_schema", "function_calling"):
    assert isinstance(chat.with_structured_output(Person, method=method).invoke("Describe a person."), Person)
# By default it sends OpenAI's token ids, which mean something else to other models.
embeddings = OpenAIEmbeddings(model=MODEL, check_embedding_ctx_length=False)
assert len(embeddings.embed_documents(["Rome", "Paris"])) == 2
# One key's guardrails mask every word of an answer; the other key's end it before the first word.
masked = ChatOpenAI(model=MODEL, api_key=os.environ["MASKED_API_KEY"], max_tokens=40, max_retries=0)
for text in (masked.invoke("Say hello.").content, "".join(chunk.content for chunk in masked.stream("Say hello."))):
    assert "[word]" in text, text
    assert not re.search("[A-Za-z]{2}", text.replace("[word]", "")), text
refused = ChatOpenAI(model=MODEL, api_key=os.environ["REFUSED_API_KEY"], max_tokens=40, max_retries=0)
whole, chunks = refused.invoke("Say hello."), list(refused.stream("Say hello."))
assert whole.response_metadata["finish_reason"] == "content_filter"
assert [reason for chunk in chunks if (reason := chunk.response_metadata.get("finish_reason"))] == ["content_filter"]
assert not re.search("[A-Za-z]{2}", whole.content + "".join(chunk.content for chunk in chunks))
