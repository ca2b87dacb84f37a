"""A model that answers scripts: all right but some."""

import json

from features.model_check.cli.judge import Answer
from features.model_check.cli.scripts import SCRIPTS, Call, Script
from features.model_check.cli.vendor_apis import Api

#: What it does wrong, by the number of the script: one of each API.
WRONG = {
    9: Answer(calls=(("delete_branch", '{"name": "feature/login", "force": true}'),)),
    25: Answer("I would multiply them."),
    44: Answer(calls=(("send_email", "{}"),)),
}


def answer(ask: str) -> Answer:
    number = next(number for number, script in enumerate(SCRIPTS) if script.ask == ask)
    return WRONG.get(number) or right(SCRIPTS[number])


def right(script: Script) -> Answer:
    if not script.right:
        return Answer(f"Well: {script.says}.")
    return Answer(calls=tuple((call.name, arguments(call)) for call in script.right))


def arguments(call: Call) -> str:
    return json.dumps({key: value[0] if isinstance(value, tuple) else value for key, value in call.arguments.items()}, ensure_ascii=False)


def show(api: Api, said: Answer, *, is_streamed: bool) -> bytes:
    """Write an answer as the vendor does; a stream has each argument in two parts."""
    calls = list(said.calls)
    if api is Api.CHAT:
        made = [
            {"id": f"c{place}", "type": "function", "function": {"name": name, "arguments": text}}
            for place, (name, text) in enumerate(calls)
        ]
        if not is_streamed:
            return _json({"choices": [{"index": 0, "message": {"role": "assistant", "content": said.text or None, "tool_calls": made}}]})
        deltas = [{"role": "assistant", "content": said.text}]
        for place, (name, text) in enumerate(calls):
            deltas.append({"tool_calls": [{"index": place, "id": f"c{place}", "function": {"name": name, "arguments": text[:5]}}]})
            deltas.append({"tool_calls": [{"index": place, "function": {"arguments": text[5:]}}]})
        return _stream([{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]) + b"data: [DONE]\n\n"
    if api is Api.RESPONSES:
        items = [
            {"type": "function_call", "call_id": f"c{place}", "name": name, "arguments": text} for place, (name, text) in enumerate(calls)
        ]
        items.insert(0, {"type": "message", "content": [{"type": "output_text", "text": said.text}]})
        response = {"id": "r", "output": items, "error": None}
        events = [{"type": "response.created", "response": {"output": []}}, {"type": "response.output_text.delta", "delta": "x"}]
        return _stream([*events, {"type": "response.completed", "response": response}]) if is_streamed else _json(response)
    blocks = [{"type": "tool_use", "id": f"c{place}", "name": name} for place, (name, _) in enumerate(calls)]
    if not is_streamed:
        text_first = [{"type": "text", "text": said.text}]
        filled = [{**block, "input": json.loads(text)} for block, (_, text) in zip(blocks, calls, strict=True)]
        return _json({"type": "message", "content": [*text_first, *filled]})
    events = [{"type": "message_start", "message": {"content": []}}]
    events += [{"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}]
    events += [{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": said.text}}]
    for place, (block, (_, text)) in enumerate(zip(blocks, calls, strict=True), 1):
        events.append({"type": "content_block_start", "index": place, "content_block": {**block, "input": {}}})
        for part in (text[:5], text[5:]):
            events.append({"type": "content_block_delta", "index": place, "delta": {"type": "input_json_delta", "partial_json": part}})
    return _stream([*events, {"type": "message_stop"}])


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _stream(events: list[dict[str, object]]) -> bytes:
    return b"".join(b"event: x\ndata: " + _json(event) + b"\n\n" for event in events)
