"""LlamaIndex's llama-index-llms-openai-like."""

import os

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

there = {"model": os.environ["MODEL"], "api_base": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"]}
llm = OpenAILike(**there, is_chat_model=True, is_function_calling_model=True, max_tokens=100, max_retries=0)


def get_weather(city: str) -> str:
    """Say the weather in a city."""
    return f"18 degrees in {city}"


question = [ChatMessage(role="user", content="What is the weather in Rome?")]
assert llm.chat(question).message.content
assert [piece for piece in llm.stream_chat(question) if piece.delta]
assert llm.complete("Once upon a time").text
called = llm.chat_with_tools([FunctionTool.from_defaults(get_weather)], user_msg="What is the weather in Rome?", tool_required=True)
(call,) = llm.get_tool_calls_from_response(called)
assert call.tool_name == "get_weather"
