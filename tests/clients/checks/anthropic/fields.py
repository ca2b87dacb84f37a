"""The fields of a request, without messages and tools."""

import json
from functools import partial
from typing import Any

from checks.anthropic.client import HELLO, MODEL, SCRIPTED, ask, checks, client, report, said, text

# --- what reaches the model -----------------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": False}


@checks("create.model")
def _() -> None:
    assert ask().model == SCRIPTED


@checks("create.max_tokens")
def _() -> None:
    assert report("max_tokens", max_tokens=77) == 77


@checks("create.stream")
def _() -> None:
    events = list(client.messages.create(**said(), stream=True))
    assert events[0].type == "message_start"
    assert events[-1].type == "message_stop"


@checks("create.stop_sequences")
def _() -> None:
    assert report("stop", stop_sequences=["END", "STOP"]) == ["END", "STOP"]
    # A letter that any answer has.
    answer = client.messages.create(
        model=MODEL, max_tokens=60, stop_sequences=["e"], messages=[{"role": "user", "content": "Repeat: Hello"}]
    )
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "e"), answer
    assert "e" not in answer.content[0].text


@checks("create.system", "create.system[text]", "create.system.text")
def _() -> None:
    assert report("messages", system="Be brief.")[0] == {"role": "system", "content": "Be brief."}
    assert report("messages", system=[text("Be brief. "), text("Be kind.")])[0]["content"] == "Be brief. Be kind."


def _reaches(value: float, name: str) -> None:
    assert report(name, extra_body={name: value}) == value


# The client has no arguments for them any more, but the API has the fields.
for name, value in {"temperature": 0.25, "top_p": 0.5, "top_k": 20}.items():
    checks.add(f"create.{name}", partial(_reaches, value, name))


# --- thinking -------------------------------------------------------------------------------------------------------------------


def _effort(expected: str | None, **fields: Any) -> None:
    assert report("reasoning_effort", **fields) == expected


BUDGETS = {1024: "low", 8192: "medium", 20_000: "high"}
THINKING = {"think": "Let me see.", "say": "Hello."}


@checks("create.thinking", "create.thinking[enabled]", "create.thinking.budget_tokens")
def _() -> None:
    for budget, effort in BUDGETS.items():
        _effort(effort, thinking={"type": "enabled", "budget_tokens": budget})
    thought, answer = ask(turn=THINKING, thinking={"type": "enabled", "budget_tokens": 1024}).content
    assert (thought.type, thought.thinking, answer.text) == ("thinking", "Let me see.", "Hello.")


@checks("create.thinking[disabled]")
def _() -> None:
    _effort("none")
    _effort("none", thinking={"type": "disabled"})
    assert [block.type for block in ask(turn=THINKING, thinking={"type": "disabled"}).content] == ["text"]


for kind in ("adaptive", "between_tools"):
    checks.add(f"create.thinking[{kind}]", partial(_effort, None, thinking={"type": kind}))


@checks("create.thinking.display")
def _() -> None:
    shown = ask(turn=THINKING, thinking={"type": "adaptive", "display": "summarized"})
    assert shown.content[0].thinking == "Let me see."
    hidden = ask(turn=THINKING, thinking={"type": "adaptive", "display": "omitted"})
    assert [block.type for block in hidden.content if block.type != "thinking" or block.thinking] == ["text"]


@checks("create.output_config", "create.output_config.effort")
def _() -> None:
    for effort, expected in {"low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "xhigh"}.items():
        _effort(expected, thinking={"type": "adaptive"}, output_config={"effort": effort})


@checks("create.output_config.format", "create.output_config.format[json_schema]", "create.output_config.format.schema")
def _() -> None:
    form = report("response_format", output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
    assert form["json_schema"]["schema"] == SCHEMA
    answer = ask(turn={"say": '{"age": 5}'}, output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
    assert json.loads(answer.content[0].text) == {"age": 5}


# --- what has no effect ---------------------------------------------------------------------------------------------------------


def _is_ignored(value: Any, name: str) -> None:
    assert ask(**{name: value}, ignores=(name,)).content[0].text == HELLO["say"]


IGNORED = {
    "cache_control": {"type": "ephemeral", "ttl": "1h"},
    "container": {"id": "container_1", "skills": [{"type": "anthropic", "skill_id": "pdf", "version": "latest"}]},
    "diagnostics": {"previous_message_id": "msg_1"},
    "inference_geo": "eu",
    "metadata": {"user_id": "somebody"},
    "speed": "fast",
}
for name, value in IGNORED.items():
    checks.add(f"create.{name}", partial(_is_ignored, value, name))


@checks("create.service_tier")
def _() -> None:
    assert ask(service_tier="standard_only").usage.service_tier is None
    assert ask(extra_body={"service_tier": "flex"}).usage.service_tier == "batch"


@checks("create.system.cache_control")
def _() -> None:
    found = report("messages", system=[{**text("Be brief."), "cache_control": {"type": "ephemeral"}}], ignores=("system.cache_control",))
    assert found[0]["content"] == "Be brief."


@checks("create.system.citations")
def _() -> None:
    citation = {"type": "char_location", "cited_text": "a", "document_index": 0, "document_title": None, "start_char_index": 0}
    found = report(
        "messages", system=[{**text("Be brief."), "citations": [{**citation, "end_char_index": 1}]}], ignores=("system.citations",)
    )
    assert found[0]["content"] == "Be brief."


@checks("create.user_profile_id", "create.workspace_id")
def _() -> None:
    # They are headers, which are not named.
    assert ask(user_profile_id="profile_1", workspace_id="wrkspc_1").content[0].text == HELLO["say"]
