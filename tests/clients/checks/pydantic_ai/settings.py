"""Every setting of every API."""

from functools import partial
from typing import Any

from pydantic_ai import ModelHTTPError, ModelSettings
from pydantic_ai.models.anthropic import AnthropicModelSettings
from pydantic_ai.models.openai import OpenAIChatModelSettings, OpenAIResponsesModelSettings

from checks.pydantic_ai.client import APIS, HELLO, ROME, checks, error_of, get_weather, report, run

Table = dict[str, Any]


def _variant(api: str, name: str) -> str:
    """Return the API with a model that has the setting."""
    return "reasoning" if api == "responses" and ("reasoning" in name or name == "thinking") else api


def _settings(name: str, value: Any) -> ModelSettings:
    return ModelSettings(**{name: value})  # type: ignore[typeddict-item]


# --- what reaches the model -------------------------------------------------------------------------------------------------------


async def _reaches(api: str, name: str, value: Any, path: str, expected: Any) -> None:
    assert await report(_variant(api, name), path, settings=_settings(name, value)) == expected


async def _is_ignored(api: str, name: str, value: Any, ignored: tuple[str, ...]) -> None:
    assert (await run(_variant(api, name), HELLO, settings=_settings(name, value), ignores=ignored)).output == HELLO["say"]


async def _is_refused(api: str, name: str, value: Any, sentence: str) -> None:
    error = await error_of(ModelHTTPError, run(api, HELLO, settings=_settings(name, value)))
    assert sentence in str(error), error


#: Setting -> its value, the field of the chat that the model gets, and what is there.
COMMON_REACHING: Table = {
    "max_tokens": (77, "max_tokens", 77),
    "temperature": (0.25, "temperature", 0.25),
    "top_p": (0.5, "top_p", 0.5),
    "thinking": ("low", "reasoning_effort", "low"),
}
CHAT_REACHING: Table = {
    "presence_penalty": (0.5, "presence_penalty", 0.5),
    "frequency_penalty": (-0.5, "frequency_penalty", -0.5),
    "seed": (7, "seed", 7),
    "logit_bias": ({"42": -50}, "logit_bias", {"42": -50}),
    "stop_sequences": (["END"], "stop", ["END"]),
}
REACHING: dict[str, Table] = {
    "chat": {
        **COMMON_REACHING,
        **CHAT_REACHING,
        "extra_body": ({"top_k": 20}, "top_k", 20),
        "openai_reasoning_effort": ("high", "reasoning_effort", "high"),
    },
    "responses": {
        **COMMON_REACHING,
        "openai_reasoning_effort": ("high", "reasoning_effort", "high"),
    },
    "anthropic": {
        **COMMON_REACHING,
        "top_k": (20, "top_k", 20),
        "stop_sequences": (["END"], "stop", ["END"]),
        "anthropic_thinking": ({"type": "enabled", "budget_tokens": 1024}, "reasoning_effort", "low"),
    },
}
#: Setting -> its value, and what the answer names as ignored.
CACHE = {"mode": "implicit", "ttl": "30m"}
OPENAI_IGNORED: Table = {
    "service_tier": ("default", ()),
    "openai_service_tier": ("flex", ()),
    "openai_user": ("somebody", ("user",)),
    "openai_prompt_cache_key": ("key", ("prompt_cache_key",)),
    "openai_prompt_cache_retention": ("24h", ("prompt_cache_retention",)),
    "openai_prompt_cache_options": (CACHE, ("prompt_cache_options",)),
}
IGNORED: dict[str, Table] = {
    "chat": {
        **OPENAI_IGNORED,
        "openai_store": (False, ("store",)),
        "openai_text_verbosity": ("low", ("verbosity",)),
        "openai_prediction": ({"type": "content", "content": "Hello"}, ("prediction",)),
    },
    "responses": {
        **OPENAI_IGNORED,
        "openai_text_verbosity": ("low", ("text.verbosity",)),
        "openai_native_tools": ([{"type": "web_search"}], ("tools[web_search]",)),
        "openai_reasoning_mode": ("pro", ("reasoning.mode",)),
        "openai_reasoning_context": ("current_turn", ("reasoning.context",)),
        "openai_truncation": ("disabled", ("truncation",)),
        "openai_background": (False, ("background",)),
        "openai_context_management": ([], ("context_management",)),
    },
    "anthropic": {
        "service_tier": ("default", ()),
        "anthropic_service_tier": ("standard_only", ()),
        "anthropic_metadata": ({"user_id": "somebody"}, ("metadata",)),
        "anthropic_cache": (True, ("cache_control",)),
        "anthropic_cache_messages": (True, ("messages.content.cache_control",)),
        "anthropic_cache_diagnostics": (True, ("diagnostics",)),
        "anthropic_container": ("container_1", ("container",)),
        "anthropic_task_budget": ({"type": "tokens", "total": 20_000}, ("output_config.task_budget",)),
        "anthropic_speed": ("fast", ("speed",)),
    },
}
#: Setting -> its value, and a part of the sentence that refuses it.
REFUSED_SETTINGS: dict[str, Table] = {
    "chat": {"openai_moderation": ({"model": "omni-moderation-latest"}, "moderation is not supported")},
    "responses": {
        "openai_moderation": ({"model": "omni-moderation-latest"}, "moderation is not supported"),
        "openai_previous_response_id": ("resp_1", "store: false"),
        "openai_conversation_id": ("conv_1", "conversation"),
    },
    "anthropic": {},
}
#: Settings that only the client reads, or that are the same without effect here.
WITHOUT_TRACE: dict[str, Table] = {
    "chat": {
        "openai_include_raw_annotations": True,
        "openai_include_unmapped_response_data": True,
    },
    "responses": {
        "openai_send_reasoning_ids": False,
        "openai_include_code_execution_outputs": True,
        "openai_include_web_search_sources": True,
        "openai_include_file_search_results": True,
        "openai_transport": "http",
        "openai_store": False,
        "openai_include_raw_annotations": True,
    },
    "anthropic": {
        "anthropic_betas": ["from-the-future-2027-01-01"],
        "anthropic_code_execution_tool_version": "20250825",
        "anthropic_web_tools_allowed_callers": ["direct"],
        "anthropic_effort": "high",
        "citations": True,
        "anthropic_context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
    },
}
LOCAL: Table = {
    "timeout": 60.0,
    "request_timeout": 60.0,
    "first_event_timeout": 60.0,
    "framing_announcement": "always",
    "max_retries": 1,
    "extra_headers": {"x-a": "b"},
}
for api in APIS:
    for name, (value, path, expected) in REACHING[api].items():
        checks.add(f"{api}.{name}", partial(_reaches, api, name, value, path, expected))
    for name, (value, ignored) in IGNORED[api].items():
        checks.add(f"{api}.{name}", partial(_is_ignored, api, name, value, ignored))
    for name, (value, sentence) in REFUSED_SETTINGS[api].items():
        checks.add(f"{api}.{name}", partial(_is_refused, api, name, value, sentence))
    for name, value in {**LOCAL, **WITHOUT_TRACE[api]}.items():
        checks.add(f"{api}.{name}", partial(_is_ignored, api, name, value, ()))


# --- the rest -----------------------------------------------------------------------------------------------------------------------


async def _caches(api: str, ignored: tuple[str, ...]) -> None:
    settings = _settings("cache", "1h")
    found = await run(api, HELLO, settings=settings, instructions="Be brief.", tools=[get_weather], ignores=ignored)
    assert found.output == HELLO["say"]


# The client only asks OpenAI itself for a cache.
CACHES: dict[str, tuple[str, ...]] = {
    "chat": (),
    "responses": (),
    "anthropic": ("cache_control", "system.cache_control", "tools.cache_control"),
}
for api, ignored in CACHES.items():
    checks.add(f"{api}.cache", partial(_caches, api, ignored))


async def _caches_part(api: str, name: str, ignored: str) -> None:
    found = await run(api, HELLO, settings=_settings(name, True), instructions="Be brief.", tools=[get_weather], ignores=(ignored,))
    assert found.output == HELLO["say"]


checks.add(
    "anthropic.anthropic_cache_instructions", partial(_caches_part, "anthropic", "anthropic_cache_instructions", "system.cache_control")
)
checks.add(
    "anthropic.anthropic_cache_tool_definitions",
    partial(_caches_part, "anthropic", "anthropic_cache_tool_definitions", "tools.cache_control"),
)
checks.add(
    "anthropic.anthropic_eager_input_streaming",
    partial(_caches_part, "anthropic", "anthropic_eager_input_streaming", "tools.eager_input_streaming"),
)
checks.add(
    "chat.openai_cache_instructions", partial(_caches_part, "chat", "openai_cache_instructions", "messages.content.prompt_cache_breakpoint")
)
checks.add(
    "responses.openai_cache_instructions",
    partial(_caches_part, "responses", "openai_cache_instructions", "input.content.prompt_cache_breakpoint"),
)


async def _calls_once(api: str) -> None:
    both = {"calls": [ROME, ["get_weather", {"city": "Oslo"}]]}
    found = await run(api, both, settings=_settings("parallel_tool_calls", False), tools=[get_weather])
    assert "Oslo" not in found.output


async def _chooses(api: str) -> None:
    assert await report(api, "tools", settings=_settings("tool_choice", "auto"), tools=[get_weather])
    assert await report(api, "tool_choice", settings=_settings("tool_choice", "none"), tools=[get_weather]) in {None, "none"}


for api in APIS:
    checks.add(f"{api}.parallel_tool_calls", partial(_calls_once, api))
    checks.add(f"{api}.tool_choice", partial(_chooses, api))


async def _has_logprobs(api: str, name: str) -> None:
    settings = ModelSettings(openai_logprobs=True, openai_top_logprobs=2)  # type: ignore[typeddict-unknown-key]
    response = (await run(api, HELLO, settings=settings)).response
    details = response.provider_details if api == "chat" else response.parts[-1].provider_details
    assert [token["logprob"] for token in details["logprobs"]] == [-0.5, -0.5], name


for api in ("chat", "responses"):
    for name in ("openai_logprobs", "openai_top_logprobs"):
        checks.add(f"{api}.{name}", partial(_has_logprobs, api, name))


@checks("responses.openai_prompt_cache_diagnostics")
async def _() -> None:
    settings = _settings("openai_prompt_cache_diagnostics", True)
    found = await run("reasoning", {"calls": [ROME]}, settings=settings, tools=[get_weather], ignores=None)
    assert "18 degrees" in found.output


@checks("responses.openai_reasoning_summary")
async def _() -> None:
    settings = _settings("openai_reasoning_summary", "auto")
    thought, said = (await run("reasoning", {"think": "Let me see.", "say": "Hello."}, settings=settings)).response.parts
    assert (thought.content, said.content) == ("Let me see.", "Hello.")


#: Settings that an API has no field for; the client leaves them out or warns.
NOT_SENT = {
    "chat": {"top_k", "citations", "openai_continuous_usage_stats"},
    "responses": {
        "top_k", "citations", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "stop_sequences", "extra_body",
        "openai_prediction", "openai_continuous_usage_stats", "openai_include_unmapped_response_data",
    },
    "anthropic": {"seed", "presence_penalty", "frequency_penalty", "logit_bias", "extra_body"},
}  # fmt: skip


async def _is_not_sent(api: str, name: str) -> None:
    values: Table = {"extra_body": {"metadata": {"a": "b"}}, "logit_bias": {"42": 1}, "stop_sequences": ["END"], "openai_prediction": {}}
    settings = _settings(name, values.get(name, 1))
    ignored = ("metadata",) if (api, name) == ("anthropic", "extra_body") else ()
    assert (await run(api, HELLO, settings=settings, ignores=ignored)).output == HELLO["say"]


for api, names in NOT_SENT.items():
    for name in sorted(names):
        checks.add(f"{api}.{name}", partial(_is_not_sent, api, name))

checks.ensure_named("chat", OpenAIChatModelSettings.__annotations__)
checks.ensure_named("responses", {**OpenAIChatModelSettings.__annotations__, **OpenAIResponsesModelSettings.__annotations__})
checks.ensure_named("anthropic", AnthropicModelSettings.__annotations__)
for api in APIS:
    checks.ensure_named(api, ModelSettings.__annotations__)
REFUSED = {
    "stored conversations": (
        "prompts are not stored; send the whole history",
        ["responses.openai_previous_response_id", "responses.openai_conversation_id"],
    ),
    "moderation": (
        "policies decide what is checked, and POST /v1/moderations checks texts",
        ["chat.openai_moderation", "responses.openai_moderation"],
    ),
}
