"""A scripted model that does one task with the tools that an agent offers. Pure: an answer depends only on the conversation.

The prompt is that of ``Task``. In its turns, the model creates a program, edits it, runs it and lists its folder with parallel calls,
looks at an image, and reports what it saw. Requests without tools, such as for a title, get a short text.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.services.inference.fake_http import Answer

#: Its name has no vendor's prefix, so agents know nothing about it.
MODEL = "coder"
MODELS = Answer(
    [json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "context_length": 200_000, "max_model_len": 200_000}]})]
)
BEFORE, AFTER = "print('hello, moon')", "print('hello, world')"
CONTENT = f"def main():\n    {BEFORE}\n\n\nmain()\n"
EDITED = CONTENT.replace(BEFORE, AFTER)
#: The answer to any other prompt.
SHORT_TEXT = "This is a short text."
_PROMPT = re.compile(r"program=([^\s\"\\]+) image=([^\s\"\\]+)")
_PRINTED = re.compile(r"hello, \w+")
_PIECE = 7

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    program: Path
    image: Path

    @property
    def prompt(self) -> str:
        return f"Create, edit and run the program, and look at the image: program={self.program} image={self.image}"


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer of the model."""

    text: str
    calls: Sequence[tuple[str, Json]] = ()


def report(*, images: int, results: int) -> str:
    """Return the model's last text if everything reached it: images, results of parallel calls, and what the program printed."""
    return _say(images, results, "hello, world")


def answer(body: Json) -> Answer:
    """Answer a request to /v1/chat/completions with a stream."""
    turn = decide_turn(body)
    chunks = [f"data: {json.dumps(chunk)}\n\n" for chunk in _chunks(turn, json.dumps(body))]
    return Answer([*chunks, "data: [DONE]\n\n"])


def decide_turn(body: Json) -> Turn:
    messages = body["messages"]
    texts = [_text(message) for message in messages if message["role"] == "user"]
    prompt = next((found for text in texts if (found := _PROMPT.search(text))), None)
    tools = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in body.get("tools", ())}
    if "json_schema" in (form := body.get("response_format", {})):
        return Turn(json.dumps(_fill(form["json_schema"]["schema"], "", {})))
    if prompt is None or not tools:
        return Turn(_whole_file(prompt[1], texts[-1]) if prompt is not None and "file listing" in _system(messages) else SHORT_TEXT)
    turns = _turns(tools, Path(prompt[1]), prompt[2])
    done = sum(bool(message.get("tool_calls")) for message in messages)
    return turns[done] if done < len(turns) else Turn(_report(messages))


# --- the turns ------------------------------------------------------------------------------------------------------------------

#: What tools are for -> their names, lowercase, the first ones preferred.
_TOOLS = {
    "create": ("write", "write_file", "create", "editor"),
    "edit": ("edit", "apply_patch", "editor"),
    "run": ("bash", "run_shell_command", "exec_command", "run_commands"),
    "read": ("read", "read_file", "view", "read_files"),
    "look": ("view_image", "read", "read_file", "view"),
}
#: Parameter, lowercase and without _ -> the value that it gets.
_VALUES = {
    "path": ("filepath", "path"),
    "content": ("content", "filetext"),
    "before": ("oldstring", "oldtext", "oldstr"),
    "after": ("newstring", "newtext", "newstr"),
    "command": ("command", "commands", "cmd"),
    "patch": ("input",),
}


def _turns(tools: Mapping[str, Json], program: Path, image: str) -> list[Turn]:
    if (tool := next((name for name in tools if name.endswith("__exec")), None)) is not None:
        return [Turn(text, [(tool, {"input": script})]) for text, script in _scripts(program, image)]

    def find(purpose: str) -> str | None:
        by_name = {name.lower(): name for name in tools}
        return next((by_name[name] for name in _TOOLS[purpose] if name in by_name), None)

    def call(purpose: str, **values: str) -> tuple[str, Json] | None:
        name = find(purpose)
        return None if name is None else (name, _fill(tools[name], "", values))

    # An editor that also creates takes the whole content as its new text.
    here = f"cat > {program} <<'END'\n{CONTENT}END"
    create = call("create", path=str(program), content=CONTENT, after=CONTENT) or call("run", command=here)
    edit = call("edit", path=str(program), before=BEFORE, after=AFTER, patch=_patch(program)) or call(
        "run", command=f"sed -i 's/moon/world/' {program}"
    )
    both = [call("run", command=f"python3 {program}"), call("run", command=f"ls {program.parent}")]
    look = call("look", path=image)
    # Some agents edit only what the model has read.
    read = call("read", path=str(program))
    wanted = (
        ("Creating it.", [create]),
        ("Reading it.", [read]),
        ("Editing it.", [edit]),
        ("Running it.", both),
        ("Looking at the image.", [look]),
    )
    return [Turn(text, found) for text, calls in wanted if (found := [each for each in calls if each is not None])]


def _scripts(program: Path, image: str) -> Iterator[tuple[str, str]]:
    """Yield texts and scripts for Codex's newest models, whose only tool takes JavaScript."""

    def run(command: str) -> str:
        return f"text((await tools.exec_command({{cmd: {json.dumps(command)}}})).output)"

    yield "Creating it.", run(f"cat > {program} <<'END'\n{CONTENT}END")
    yield "Editing it.", f"text(await tools.apply_patch({json.dumps(_patch(program))}))"
    yield "Running it.", f"{run(f'python3 {program}')}; {run(f'ls {program.parent}')}"
    yield "Looking at the image.", f"image(await tools.view_image({{path: {json.dumps(image)}}}))"


def _patch(program: Path) -> str:
    return f"*** Begin Patch\n*** Update File: {program}\n@@\n def main():\n-    {BEFORE}\n+    {AFTER}\n*** End Patch"


def _fill(schema: Json, name: str, values: Mapping[str, str]) -> Any:
    """Return a value that a JSON schema accepts, with ``values`` where its parameters ask for them."""
    if name in values:
        return [values[name]] if schema.get("type") == "array" else values[name]
    if alternatives := schema.get("anyOf") or schema.get("oneOf"):
        return _fill(alternatives[0], name, values)
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        fields = ((field, each, _value_of(field)) for field, each in schema.get("properties", {}).items())
        # With "edits", the path stands beside the list.
        return {
            field: _fill(each, value, values)
            for field, each, value in fields
            if field in schema.get("required", ()) or value in values or field == "edits"
        }
    if kind == "array":
        return [_fill(schema.get("items", {}), name, values)]
    return {"boolean": False, "integer": 1, "number": 1}.get(kind, "text")


def _value_of(field: str) -> str:
    plain = field.lower().replace("_", "")
    return next((value for value, names in _VALUES.items() if plain in names), "")


def _report(messages: Sequence[Json]) -> str:
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    images = sum(part["type"] == "image_url" for part in parts)
    results = {message["tool_call_id"]: _text(message) for message in messages if message["role"] == "tool"}
    turns = [[call["id"] for call in message.get("tool_calls") or ()] for message in messages]
    answered = max(sum(call in results for call in turn) for turn in turns)
    printed = _PRINTED.findall(" ".join(results.values())) or [""]
    return _say(images, answered, printed[-1])


def _say(images: int, results: int, printed: str) -> str:
    return f"Task done: {images} image(s), at most {results} result(s) at a time, printed: {printed}."


def _whole_file(program: str, request: str) -> str:
    """Return an edit as agents without tools parse it."""
    return f"{Path(program).name}\n```\n{EDITED if 'Edit the' in request else CONTENT}```\n"


# --- the wire -------------------------------------------------------------------------------------------------------------------


def _text(message: Json) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def _system(messages: Sequence[Json]) -> str:
    return " ".join(_text(message) for message in messages if message["role"] == "system")


def _chunks(turn: Turn, request: str) -> Iterator[Json]:
    def chunk(reason: str | None = None, **delta: object) -> Json:
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    yield chunk(role="assistant", content="")
    yield chunk(reasoning_content="Let me ")
    yield chunk(reasoning_content="think.")
    yield from (chunk(content=piece) for piece in _pieces(turn.text))
    for number, (name, arguments) in enumerate(turn.calls):
        # The id is the same whenever the same conversation is continued.
        made = {"index": number, "id": f"call_{len(request)}_{number}", "type": "function", "function": {"name": name, "arguments": ""}}
        yield chunk(tool_calls=[made])
        for piece in _pieces(json.dumps(arguments)):
            yield chunk(tool_calls=[{"index": number, "function": {"arguments": piece}}])
    yield chunk("tool_calls" if turn.calls else "stop")
    tokens = {"prompt_tokens": len(request) // 4, "completion_tokens": 20}
    yield {"choices": [], "usage": {**tokens, "total_tokens": sum(tokens.values())}}


def _pieces(text: str) -> Iterator[str]:
    return (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
