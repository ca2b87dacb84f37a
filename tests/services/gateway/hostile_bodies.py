"""Bodies that one ordinary key may send within the limits of bodies, each made to hold the event loop. The one place for all of them.

Add a body where a loop, a decoder or a search over what users send could take long; ``test_silence`` sends all of them.
"""

import json
import random
from typing import Any

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
EMBEDDINGS, RERANK, MODERATIONS, INFILL = "/v1/embeddings", "/v1/rerank", "/v1/moderations", "/infill"
TOKENIZE, DETOKENIZE, TEMPLATE = "/v1/tokenize", "/v1/detokenize", "/v1/apply-template"
REST, INFER, RPC = "/api/inference", "/api/infer", "/rpc/gateway.processInferenceRequest"

#: The size of most bodies and texts, about the limit of a body without a prompt.
SIZE = 900_000
#: The limits of a prompt, and of its body.
LONG_SIZE, BODY_SIZE = 4_100_000, 17_000_000
HI: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
#: Several guardrails look at every number.
GUARDED = "call 0170 1234567, 4111 1111 1111 1112, 8.8.8.8 or DE89 3704 0044 0532 0130 01, a@b.example; "
#: A guard that searches from each letter takes long for these. They are short, because a guard takes its time for them in small steps.
LOOKALIKES = {
    "letters": "".join(random.Random(1).choices("ab", k=10_000)),
    "digits": "".join(random.Random(2).choices("0123456789", k=10_000)),
    "numbers in groups": "4111 1111 " * 1_000,
    "addresses": "a.b@c.d@" * 1_250,
    "IP addresses": "1.1.1.1.1." * 1_000,
    "IPv6 addresses": "::1:2:" * 1_500,
    "account numbers": "DE89 3704 0044 " * 700,
    "keys": "sk-aaaaaaaa" * 950,
    "telephone numbers": "+49-30-" * 1_450,
}


def _body(**fields: Any) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode()


def _chat(**fields: Any) -> bytes:
    return _body(**{"messages": HI, **fields})


def _say(*texts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text} for text in texts]


def _image(data: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:{data}"}}


def _source(data: str) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def _raw(fields: str) -> bytes:
    return b'{"messages": [{"role": "user", "content": "hi"}], ' + fields.encode() + b"}"


def _text(number: int) -> str:
    """Return one of ``number`` parts of a text that takes guardrails 150 ms."""
    size = 25_000 // number
    return (GUARDED * (size // len(GUARDED) + 1))[:size]


def _call(arguments: str, name: str = "f") -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


def _tool(name: str, **schema: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", **schema}}}


def _json_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def _agent_messages(number: int, **more: Any) -> list[dict[str, Any]]:
    """Return a long conversation of an agent; ``more`` are fields of each message."""
    said = "word " * (LONG_SIZE // number // 10)
    turn = [
        _say(said)[0],
        {"role": "assistant", "tool_calls": [_call('{"path": "/a"}')]},
        {"role": "tool", "tool_call_id": "c", "content": said},
    ]
    return [{**message, **more} for message in turn * (number // 3)]


def _agent_turns(number: int) -> list[dict[str, Any]]:
    """Return the same as Anthropic's messages."""
    more = {"cache_control": {"type": "ephemeral"}}
    result = {
        "type": "tool_result",
        "tool_use_id": "c",
        "content": [{"type": "text", "text": "word " * (LONG_SIZE // number // 5), **more}],
        **more,
    }
    use = {"type": "tool_use", "id": "c", "name": "f", "input": {"path": "/a", "line": 1}, **more}
    return [*HI, *[{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}] * (number // 2 - 1)]


_FIELDS = {f"f{number}": {"type": "string"} for number in range(30_000)}
_CALL_ITEM = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}

_OUTPUT_ITEM = {"type": "function_call_output", "call_id": "c"}

#: By name: the path and the body.
BODIES: dict[str, tuple[str, bytes]] = {
    # --- numbers
    "n of 2^40": (CHAT, _chat(n=2**40)),
    "n of 2^40 in completions": (COMPLETIONS, _body(prompt="hi", n=2**40)),
    "a number of 900,000 digits": (CHAT, _raw('"seed": 1' + "0" * SIZE)),
    "a large number behind empty arrays": (CHAT, _raw('"metadata": {"a": [' + "[]," * 250_000 + "1e999]}")),
    "many large numbers": (CHAT, _raw(f'"metadata": {{"a": [{"18446744073709551615," * 40_000}1]}}')),
    "a bias for 50,000 tokens": (CHAT, _chat(logit_bias={str(number): 1 for number in range(50_000)})),
    # --- many of something
    "25,000 messages": (CHAT, _chat(messages=_say("x") * 25_000)),
    "1,000 messages": (CHAT, _chat(messages=_say(_text(1000)) * 1000)),
    "25,000 parts": (CHAT, _chat(messages=_say([{"type": "text", "text": "x"}] * 25_000))),
    "14,000 tiny images": (CHAT, _chat(messages=_say([_image(",")] * 14_000))),
    "9,000 tools": (CHAT, _chat(tools=[_tool(f"f{number}") for number in range(9_000)])),
    "128 tools": (CHAT, _chat(tools=[_tool(f"f{n}", properties=dict(list(_FIELDS.items())[:200])) for n in range(128)])),
    "150,000 stops": (CHAT, _chat(stop=["x"] * 150_000)),
    "4 long stops": (CHAT, _chat(stop=["x" * (SIZE // 4)] * 4)),
    "10,000 calls in a message": (CHAT, _chat(messages=[*HI, {"role": "assistant", "tool_calls": [_call("{}")] * 10_000}])),
    "calls with guarded arguments": (
        CHAT,
        _chat(messages=[*HI, *[{"role": "assistant", "tool_calls": [_call(json.dumps({"text": _text(1000)}))]}] * 800]),
    ),
    "arguments of 80,000 texts": (CHAT, _chat(messages=[*HI, {"role": "assistant", "tool_calls": [_call(json.dumps(["1"] * 80_000))]}])),
    "deep arguments": (CHAT, _chat(messages=[*HI, {"role": "assistant", "tool_calls": [_call("[" * 400_000 + "]" * 400_000)]}])),
    "guarded thoughts": (CHAT, _chat(messages=[*HI, {"role": "assistant", "content": "x", "reasoning_content": _text(1)}])),
    "50,000 metadata": (CHAT, _chat(metadata={f"m{number}": "x" for number in range(50_000)})),
    "50,000 unknown fields": (CHAT, _chat(**{f"m{number}": "x" for number in range(50_000)})),
    "an unknown field with a long name": (CHAT, _chat(**{"x" * SIZE: 1})),
    "one field 75,000 times": (CHAT, _raw('"seed": 1, ' * 75_000 + '"seed": 2')),
    "60,000 template variables": (CHAT, _chat(chat_template_kwargs={f"v{number}": 1 for number in range(60_000)})),
    # --- prompts of agents
    "10,000 messages of an agent": (CHAT, _chat(messages=_agent_messages(10_000))),
    "10,000 messages with unknown fields": (CHAT, _chat(messages=_agent_messages(10_000, **{f"u{number}": "x" for number in range(10)}))),
    "10,000 messages of Claude Code": (MESSAGES, _body(max_tokens=5, messages=_agent_turns(10_000))),
    "39,000 items of Codex": (
        RESPONSES,
        _body(
            input=_say("x") + [{**_CALL_ITEM, "id": "x", "status": "completed"}, {**_OUTPUT_ITEM, "id": "x", "output": "w " * 50}] * 19_500
        ),
    ),
    "10,000 messages of 10 parts": (CHAT, _chat(messages=_say([{"type": "text", "text": "x", "u": 1}] * 10) * 10_000)),
    "50,000 results of tools": (
        MESSAGES,
        _body(max_tokens=5, messages=_say([{"type": "tool_result", "tool_use_id": "c", "content": "x", "u": 1}] * 50) * 1000),
    ),
    "an image in each of 5,000 results": (
        CHAT,
        _chat(messages=[*HI, *[{"role": "tool", "tool_call_id": "c", "content": [_image("image/png;base64," + "A" * 600)]}] * 5000]),
    ),
    "large images in 200 results": (
        MESSAGES,
        _body(
            max_tokens=5,
            messages=_say([{"type": "tool_result", "tool_use_id": "c", "content": [_source("iVBORw0KGgo" + "A" * 80_000)]}] * 200),
        ),
    ),
    "512 large tools": (CHAT, _chat(tools=[_tool(f"f{n}", properties=dict(list(_FIELDS.items())[:250])) for n in range(512)])),
    "60,000 messages": (CHAT, _chat(messages=[{"role": "user", "content": "a", "u": 1}] * 60_000)),
    "130,000 empty messages": (CHAT, _chat(messages=[{}] * 130_000)),
    "a text of 4 MB": (CHAT, _chat(messages=_say("ab " * (LONG_SIZE // 3)))),
    "4 MB of letters of four bytes": (CHAT, _chat(messages=_say("\U0001f600" * (LONG_SIZE // 4)))),
    "4 MB in escapes": (CHAT, _raw('"messages": [{"role": "user", "content": "' + r"\u00e9" * (LONG_SIZE // 2) + '"}]')),
    "17 MB of quotes": (CHAT, _raw('"messages": [{"role": "user", "content": "' + r"\"\n" * (BODY_SIZE // 4) + '"}]')),
    "17 MB of brackets": (CHAT, _raw('"messages": [{"role": "user", "content": "' + "[{" * (BODY_SIZE // 2) + '"}]')),
    "17 MB of digits": (CHAT, _raw('"messages": [{"role": "user", "content": "' + "123456789 " * (BODY_SIZE // 10) + '"}]')),
    "17 MB of numbers": (CHAT, _raw('"metadata": {"a": [' + "1," * (BODY_SIZE // 2) + "1]}")),
    "17 MB of arrays": (CHAT, b"[" * BODY_SIZE),
    "17 MB that begin as images": (
        CHAT,
        _raw('"messages": [{"role": "user", "content": "' + '","url":"data:image' * (BODY_SIZE // 20) + '"}]'),
    ),
    "4 MB to tokenize": (TOKENIZE, _body(prompt="ab " * (LONG_SIZE // 3))),
    "10,000 messages to tokenize": (TOKENIZE, _body(messages=_agent_messages(10_000))),
    "4 MB to complete": (COMPLETIONS, _body(prompt="ab " * (LONG_SIZE // 3))),
    "10,000 messages in our own API": (REST, _body(messages=_agent_messages(10_000))),
    # --- nesting
    "deep nesting": (CHAT, b"[" * SIZE),
    "deep nesting in metadata": (CHAT, _raw('"metadata": ' + '{"a":' * 150_000)),
    "900 levels": (CHAT, _raw('"metadata": ' + '{"a":' * 900 + "1" + "}" * 900)),
    "empty arrays in a tool": (CHAT, _chat(tools=[_tool("f", enum=[[]] * 200_000)])),
    "empty arrays as messages": (CHAT, _chat(messages=[[]] * 200_000)),
    # --- formats
    "a schema of 30,000 properties": (CHAT, _chat(response_format=_json_schema({"type": "object", "properties": _FIELDS}))),
    "a schema of 300 levels": (CHAT, _chat(response_format=_json_schema(_nested(300)))),
    "a schema of 40,000 alternatives": (CHAT, _chat(response_format=_json_schema({"anyOf": [{"const": 1}] * 40_000}))),
    "a long regular expression": (CHAT, _chat(guided_regex="(a|b)*" * (SIZE // 6))),
    "a long grammar": (CHAT, _chat(grammar='root ::= "a"\n' * (SIZE // 16))),
    "150,000 choices": (CHAT, _chat(guided_choice=["x"] * 150_000)),
    # --- texts
    **{f"a text of {name}": (CHAT, _chat(messages=_say(text))) for name, text in LOOKALIKES.items()},
    "a guarded text": (CHAT, _chat(messages=_say(_text(1)))),
    "a text of spaces": (CHAT, _chat(messages=_say(" " * SIZE))),
    "a text of letters of four bytes": (CHAT, _chat(messages=_say("\U0001f600" * (SIZE // 4)))),
    "a text of accents": (CHAT, _chat(messages=_say("a\u0301\u0301\u0301" * (SIZE // 7)))),
    "a text in escapes": (CHAT, _raw('"messages": [{"role": "user", "content": "' + r"\u00e9" * (SIZE // 6) + '"}]')),
    "an image of letters": (
        CHAT,
        _chat(messages=_say([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'a' * SIZE}"}}])),
    ),
    # --- completions
    "150,000 prompts": (COMPLETIONS, _body(prompt=["x"] * 150_000)),
    "16 prompts": (COMPLETIONS, _body(prompt=[_text(16)] * 16)),
    "a long suffix": (COMPLETIONS, _body(prompt="x", suffix=_text(1))),
    # --- responses
    "25,000 items": (RESPONSES, _body(input=_say("x") * 25_000)),
    "10,000 calls in a row": (RESPONSES, _body(input=[*HI, *[_CALL_ITEM] * 10_000])),
    "22,000 parts of an item": (RESPONSES, _body(input=_say([{"type": "input_text", "text": "x"}] * 22_000))),
    "150,000 includes": (RESPONSES, _body(input="hi", include=["x"] * 150_000)),
    "18,000 functions": (RESPONSES, _body(input="hi", tools=[{"type": "function", "name": f"f{number}"} for number in range(18_000)])),
    # --- Anthropic's messages
    "25,000 messages of Anthropic's": (MESSAGES, _body(max_tokens=5, messages=_say("x") * 25_000)),
    "25,000 blocks": (MESSAGES, _body(max_tokens=5, messages=_say([{"type": "text", "text": "x"}] * 25_000))),
    "25,000 system parts": (MESSAGES, _body(max_tokens=5, messages=HI, system=[{"type": "text", "text": "x"}] * 25_000)),
    "10,000 tools of Anthropic's": (
        MESSAGES,
        _body(max_tokens=5, messages=HI, tools=[{"name": f"f{n}", "input_schema": {}} for n in range(15_000)]),
    ),
    # --- embeddings, ranking, moderation
    "2,048 inputs": (EMBEDDINGS, _body(input=[_text(2048)] * 2048)),
    "150,000 inputs": (EMBEDDINGS, _body(input=["x"] * 150_000)),
    "300,000 token ids": (EMBEDDINGS, _body(input=[1] * 300_000)),
    "150,000 lists of token ids": (EMBEDDINGS, _body(input=[[1]] * 150_000)),
    "1,000 documents": (RERANK, _body(query="q", documents=[_text(1000)] * 1000)),
    "150,000 documents": (RERANK, _body(query="q", documents=["x"] * 150_000)),
    "60,000 documents in objects": (RERANK, _body(query="q", documents=[{"text": "x"}] * 60_000)),
    "a long query for 1,000 documents": (RERANK, _body(query=_text(2), documents=["x"] * 1000)),
    "32 texts to moderate": (MODERATIONS, _body(input=[_text(32)] * 32)),
    "150,000 texts to moderate": (MODERATIONS, _body(input=["x"] * 150_000)),
    # --- tokens
    "1,000 messages to tokenize": (TOKENIZE, _body(messages=_say(_text(1000)) * 1000)),
    "a text to tokenize": (TOKENIZE, _body(prompt=_text(1))),
    "300,000 tokens": (DETOKENIZE, _body(tokens=[1] * 300_000)),
    "25,000 messages to render": (TEMPLATE, _body(messages=_say("x") * 25_000)),
    # --- our own APIs
    "60,000 files": (INFILL, _body(input_prefix="x", input_suffix="y", input_extra=[{"text": "x"}] * 60_000)),
    "25,000 messages in camel case": (REST, _body(messages=_say("x") * 25_000)),
    "2,048 inputs in a payload": (INFER, _body(payload={"input": [_text(2048)] * 2048})),
    "25,000 messages over RPC": (RPC, _body(request={"messages": _say("x") * 25_000})),
    "35,000 unknown fields over RPC": (RPC, _body(request={"prompt": "x", "tools": [{"name": "f", f"u{n}": 1} for n in range(35_000)]})),
}
