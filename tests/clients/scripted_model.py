"""A model behind an upstream whose answer is the script in the prompt, so that each check of a client says what its answer is. Pure.

The script is a JSON object, in the last message of the user that has one:

    {"think": "…", "say": "…", "calls": [["get_weather", {"city": "Rome"}]], "finish": "length"}
    {"say": ["pieces ", "of a", "n answer"]}
    {"turns": [{"calls": [["get_weather", {"city": "Rome"}]]}, {"say": "…"}]}    # one answer after another
    {"report": ["temperature", "messages.0.content"]}    # answers what reached the model of these fields; [] for all
    {"report": ["tool_choice"], "as": "get_weather"}    # the same as the arguments of a call

After results of tools that no further turn follows, the model says them. Without a script, it says hello.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from tests.services.inference.fake_http import Answer, Answers

MODEL, JUDGE = "scripted", "judge"
#: What a response says that used the prompt cache.
CACHED_TOKENS = 3
HELLO = "Hello from the script."
#: The probability of every token.
LOGPROB = -0.5

Json = Mapping[str, Any]
_PIECE = re.compile(r"\S*\s*")


def answers() -> dict[str, Answers]:
    """Return the answers of a server with this model and a moderation model."""
    listed = [{"id": name, "object": "model", "owned_by": "vllm", "max_model_len": 200_000} for name in (MODEL, JUDGE)]
    return {
        "/v1/models": Answer([json.dumps({"object": "list", "data": listed})]),
        "/v1/chat/completions": _chat,
        "/v1/moderations": _judge,
        "/v1/embeddings": _embed,
    }


def _chat(body: Json) -> Answer:
    return Answer([*(f"data: {json.dumps(chunk)}\n\n" for chunk in _chunks(_plan(body), body)), "data: [DONE]\n\n"])


def _judge(body: Json) -> Answer:
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    results = [
        {"flagged": (bad := "hurt" in text), "categories": {"violence": bad}, "category_scores": {"violence": float(bad)}} for text in texts
    ]
    return Answer([json.dumps({"id": "modr-1", "model": JUDGE, "results": results})])


def _embed(body: Json) -> Answer:
    data = [{"object": "embedding", "index": index, "embedding": [0.6, 0.8, 0.0, 0.0]} for index in range(len(body["input"]))]
    return Answer([json.dumps({"object": "list", "model": MODEL, "data": data, "usage": {"prompt_tokens": 2, "total_tokens": 2}})])


def _plan(body: Json) -> Json:
    """Return the script of the answer."""
    messages: Sequence[Json] = body["messages"]
    later = list(takewhile(lambda message: _script(message) is None, reversed(messages)))[::-1]
    script = _script(messages[len(messages) - len(later) - 1]) if len(later) < len(messages) else {"say": HELLO}
    assert script is not None
    turns, done = script.get("turns", [script]), sum(message["role"] == "assistant" for message in later)
    if done < len(turns):
        script = turns[done]
    elif said := [_text(message) for message in later if message["role"] == "tool"]:
        images = sum(part["type"] == "image_url" for message in later for part in _parts(message))
        return {"say": f"Results: {', '.join(said)}; images: {images}"}
    if "report" in script:
        found = {path: _at(body, path.split(".")) for path in script["report"]} if script["report"] else body
        return {"calls": [[script["as"], found]]} if "as" in script else {"say": json.dumps(found)}
    return script


def _at(value: Any, path: Sequence[str]) -> Any:
    for step in path:
        value = value[int(step)] if isinstance(value, list) else (value or {}).get(step)
    return value


def _script(message: Json) -> Json | None:
    if message["role"] != "user":
        return None
    found = re.search(r"\{.*\}", _text(message), re.DOTALL)
    try:
        script = json.loads(found[0]) if found else None
    except ValueError:
        return None
    return script if isinstance(script, dict) else None


def _parts(message: Json) -> list[Json]:
    content = message.get("content") or ""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text(message: Json) -> str:
    return " ".join(part["text"] for part in _parts(message) if part["type"] == "text")


def _chunks(script: Json, body: Json) -> Iterator[Json]:
    counts = {"think": 0, "say": 0}
    for index in range(body.get("n", 1)):
        for field, words in (("reasoning_content", "think"), ("content", "say")):
            for piece in _pieces(script.get(words, "")):
                counts[words] += 1
                chance = {"token": piece, "logprob": LOGPROB, "bytes": list(piece.encode())}
                top = [chance] * body.get("top_logprobs", 0)
                yield _choice(
                    index, {field: piece}, logprobs={"content": [chance | {"top_logprobs": top}]} if body.get("logprobs") else None
                )
        for number, (name, arguments) in enumerate(script.get("calls", ())):
            text = json.dumps(arguments) if isinstance(arguments, dict) else arguments
            call = {"index": number, "id": f"call_{index}{number}_{len(body['messages'])}", "type": "function"}
            yield _choice(index, {"tool_calls": [call | {"function": {"name": name, "arguments": ""}}]})
            for piece in _pieces(text):
                yield _choice(index, {"tool_calls": [{"index": number, "function": {"arguments": piece}}]})
        yield _choice(index, {}, finish_reason=script.get("finish") or ("tool_calls" if script.get("calls") else "stop"))
    written = sum(counts.values()) + 5 * len(script.get("calls", ()))
    prompt = len(json.dumps(body["messages"])) // 4
    usage: dict[str, object] = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
    usage["prompt_tokens_details"] = {"cached_tokens": CACHED_TOKENS}
    yield {"choices": [], "usage": usage | {"completion_tokens_details": {"reasoning_tokens": counts["think"]}}}


def _choice(index: int, delta: Json, finish_reason: str | None = None, logprobs: Json | None = None) -> Json:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}]}


def _pieces(text: str | list[str]) -> list[str]:
    return text if isinstance(text, list) else [piece for piece in _PIECE.findall(text) if piece]
