"""Tools and the choice among them."""

from functools import partial
from typing import Any

from anthropic.types import ToolUnionParam
from checklist import script

from checks.anthropic.client import HELLO, ROME, SCRIPTED, TOOL, ask, checks, client, is_refused, name_fields, report

CALLING = {"calls": [ROME]}
OTHER = {**TOOL, "name": "get_time", "description": "Says the time."}


@checks("create.tools", "create.tools[custom]", "create.tools.name", "create.tools.description", "create.tools.input_schema")
def _() -> None:
    function = report("tools", tools=[{**TOOL, "type": "custom"}])[0]["function"]
    assert (function["name"], function["description"], function["parameters"]) == tuple(TOOL.values())
    answer = ask(turn=CALLING, tools=[TOOL])
    use = answer.content[0]
    assert (answer.stop_reason, use.type, use.name, use.input) == ("tool_use", "tool_use", *ROME)


def _field_is_ignored(value: Any, name: str) -> None:
    assert len(report("tools", tools=[{**TOOL, name: value}], ignores=(f"tools.{name}",))) == 1


IGNORED = {
    "allowed_callers": ["direct"],
    "cache_control": {"type": "ephemeral"},
    "defer_loading": False,
    "eager_input_streaming": True,
    "input_examples": [{"city": "Rome"}],
    "strict": True,
}
for name, value in IGNORED.items():
    checks.add(f"create.tools.{name}", partial(_field_is_ignored, value, name))


# --- tools of Anthropic ---------------------------------------------------------------------------------------------------------

#: Fields that some of them need.
NEEDED: dict[str, dict[str, Any]] = {
    "computer_20241022": {"display_height_px": 600, "display_width_px": 800},
    "computer_20250124": {"display_height_px": 600, "display_width_px": 800},
    "computer_20251124": {"display_height_px": 600, "display_width_px": 800},
    "advisor_20260301": {"model": SCRIPTED},
    "mcp_toolset": {"mcp_server_name": "files"},
}


def _tool_is_dropped(kind: str) -> None:
    tool = {"type": kind, "name": "theirs", **NEEDED.get(kind, {})}
    assert [found["function"]["name"] for found in report("tools", tools=[TOOL, tool], ignores=(f"tools[{kind}]",))] == ["get_weather"]
    assert ask(tools=[tool], ignores=(f"tools[{kind}]",)).content[0].text == HELLO["say"]


_checked: set[str] = set()


def add_dropped(api: str, union: Any) -> None:
    """Add a check of each type of tool that is not the caller's own."""
    for name in name_fields(union, lambda _: True, "tools"):
        if name.startswith("tools[") and name != "tools[custom]" and name not in _checked:
            _checked.add(name)
            checks.add(f"{api}.{name}", partial(_tool_is_dropped, name.removeprefix("tools[").removesuffix("]")))


add_dropped("create", ToolUnionParam)

# --- the choice -----------------------------------------------------------------------------------------------------------------


def _chosen(expected: Any, **choice: Any) -> None:
    assert report("tool_choice", tools=[TOOL, OTHER], tool_choice=choice) == expected


checks.add("create.tool_choice[none]", partial(_chosen, None, type="none"))
checks.add("create.tool_choice[any]", partial(_chosen, "required", type="any"))


@checks("create.tool_choice", "create.tool_choice[auto]")
def _() -> None:
    assert report("tool_choice", tools=[TOOL], tool_choice={"type": "auto"}) in {None, "auto"}
    assert len(report("tools", tools=[TOOL, OTHER], tool_choice={"type": "auto"})) == 2


@checks("create.tool_choice[tool]", "create.tool_choice.name")
def _() -> None:
    answer = ask(turn=CALLING, tools=[TOOL, OTHER], tool_choice={"type": "tool", "name": "get_weather"})
    assert answer.content[0].name == "get_weather"
    offered = report("tools", tools=[TOOL, OTHER], tool_choice={"type": "tool", "name": "get_weather"})
    assert [tool["function"]["name"] for tool in offered] == ["get_weather"]
    search = {"type": "web_search_20250305", "name": "web_search"}
    is_refused("web_search", tools=[TOOL, search], tool_choice={"type": "tool", "name": "web_search"})


@checks("create.tool_choice.disable_parallel_tool_use")
def _() -> None:
    both = {"calls": [ROME, ["get_time", {"city": "Oslo"}]]}
    assert [use.name for use in ask(turn=both, tools=[TOOL, OTHER]).content] == ["get_weather", "get_time"]
    one = ask(turn=both, tools=[TOOL, OTHER], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [use.name for use in one.content] == ["get_weather"]


@checks("create.messages.content[tool_result]: the next turn")
def _() -> None:
    first = ask(turn={"think": "The weather.", "say": "One moment.", "calls": [ROME]}, tools=[TOOL], thinking={"type": "adaptive"})
    use = first.content[-1]
    returned = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "18 degrees"}]}
    messages = [{"role": "user", "content": script(calls=[ROME])}, first.to_param(), returned]
    last = client.messages.create(model=SCRIPTED, max_tokens=50, messages=messages, tools=[TOOL])
    assert last.content[0].text == "Results: 18 degrees; images: 0"
