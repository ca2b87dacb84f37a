"""The fields of the vendors' APIs that have no field here: whether each is ignored or refused, and why. Pure.

What would change the content of an answer and cannot be done is refused; anything else is ignored, and so is what is not in these tables.
The keys are explained at ``tolerant_json.BodyDialect``. docs/howto/openai-api.md lists them and is checked against these tables.
"""

from collections.abc import Mapping

from services.gateway.http_api.tolerant_json import ParameterRule

Rules = Mapping[str, ParameterRule]


def ignored(why: str) -> ParameterRule:
    return ParameterRule(why, ignored=True)


def only(description: str, *values: object) -> ParameterRule:
    return ParameterRule(description, values.__contains__)


_USER = ignored("the credential identifies the caller")
_CACHE = ignored("prompt prefixes are cached automatically, per account")
_SPEED = ignored("there are no faster tiers; `service_tier: flex` is cheaper")
COPIED = ignored("clients copy it from an answer; it means nothing to a model")
_OBFUSCATION = ignored("streams are not padded")
_VERBOSITY = ignored("say in the prompt how long the answer should be")
OTHER_TOOLS = ignored("offer a function instead; a tool_choice that names it is refused")

#: Anywhere in chats, responses and messages.
_EVERYWHERE: Rules = {
    "*.cache_control": _CACHE,
    "*.prompt_cache_breakpoint": _CACHE,
    "*.annotations": COPIED,
    "*.citations": COPIED,
    "*.logprobs": COPIED,
}

#: Chats and responses have these.
_COMMON: Rules = {
    **_EVERYWHERE,
    "user": _USER,
    "safety_identifier": _USER,
    "prompt_cache_key": _CACHE,
    "prompt_cache_retention": _CACHE,
    "prompt_cache_options": _CACHE,
    "moderation": ParameterRule("is not supported; policies decide what is checked, and POST /v1/moderations checks texts"),
    "stream_options.include_obfuscation": _OBFUSCATION,
    "tools[*]": OTHER_TOOLS,
}

#: In a chat's messages, here and below /api.
CHAT_MESSAGES: Rules = {
    **_EVERYWHERE,
    "messages.name": ignored("models see roles, not names"),
    "messages.parsed": COPIED,
    "messages.tool_calls.index": COPIED,
    "messages.tool_calls.function.parsed_arguments": COPIED,
    "messages.audio": only("is not supported; models only read text and images", [], ""),
    "messages.content[*]": ParameterRule("must be a text or image_url part; audio and files are not supported"),
}

CHAT: Rules = {
    **_COMMON,
    **CHAT_MESSAGES,
    "store": ignored("answers are not stored"),
    "modalities": only('must be ["text"]; models only generate text', ["text"]),
    "verbosity": _VERBOSITY,
    "audio": ParameterRule("is not supported; models only generate text"),
    "prediction": ignored("it only makes answers faster, not different"),
    "web_search_options": ignored("offer a tool that searches the web"),
}

COMPLETIONS: Rules = {"user": _USER, "stream_options.include_obfuscation": _OBFUSCATION}

EMBEDDINGS: Rules = {"user": _USER}

_OTHER_CHOICES = ParameterRule("must name a function or a custom tool that is offered")
_OTHER_MODELS = ignored("another model's built-in tool has made it")
#: Their calls, in a conversation that began with such a model, and what came of them.
_BUILT_IN_ITEMS = (
    "web_search_call", "file_search_call", "tool_search_call", "tool_search_output", "computer_call", "computer_call_output",
    "image_generation_call", "code_interpreter_call", "local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output",
    "apply_patch_call", "apply_patch_call_output", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "mcp_call",
    "program", "program_output",
)  # fmt: skip
_SUMMARIES = ParameterRule("is a summary that only OpenAI's models can make and read; send the conversation itself")

RESPONSES: Rules = {
    **_COMMON,
    "text.verbosity": _VERBOSITY,
    "max_tool_calls": ignored("it limits OpenAI's built-in tools, which are not supported"),
    "client_metadata": ignored("requests are not stored"),
    "tools.tools[*]": OTHER_TOOLS,
    "input.tools[*]": OTHER_TOOLS,
    "input.tools.tools[*]": OTHER_TOOLS,
    "tool_choice[*]": _OTHER_CHOICES,
    "tool_choice.tools[*]": _OTHER_CHOICES,
    "background_options": ignored("an answer in the background begins as soon as it can"),
    "conversation": ParameterRule("is not supported; send the whole conversation as input, with `store: false`"),
    "prompt": ParameterRule("cannot be found: prompts are not stored; send its text as instructions and input"),
    "truncation": ignored("an input that is too long is refused; shorten it yourself"),
    "context_management": ignored("an input that is too long is refused; shorten it yourself"),
    "image": ignored("images are never compressed"),
    "access_programs": ignored("they choose among OpenAI's own models"),
    "input.id": COPIED,
    "input.status": COPIED,
    "input.phase": COPIED,
    "input.summary": COPIED,
    "input.encrypted_content": ignored("only its vendor can read it"),
    "input.role": COPIED,
    **{f"input[{item}]": _OTHER_MODELS for item in _BUILT_IN_ITEMS},
    **{f"input[{item}]": _SUMMARIES for item in ("compaction", "compaction_trigger", "context_compaction")},
    "input.content[*]": ParameterRule("must be a text or an image; audio and files are not supported"),
    "input.output[*]": ParameterRule("must be a text or an image; audio and files are not supported"),
}

_OFFERED = ignored("every tool is offered, as its schema describes it")
#: Of images and documents, by the type of their source.
_SOURCES: Rules = {
    "url": ParameterRule("is a URL; send the data itself"),
    "base64": ParameterRule("is a PDF; send its text, or its pages as images"),
    "*": ParameterRule("must be the data itself; uploaded files are not supported"),
}
#: Blocks of the tools that run on Anthropic's servers: they come from its answers, in a conversation that began there.
_SERVER_BLOCKS = (
    "server_tool_use", "web_search_tool_result", "web_fetch_tool_result", "code_execution_tool_result",
    "bash_code_execution_tool_result", "text_editor_code_execution_tool_result", "tool_search_tool_result", "advisor_tool_result",
    "mcp_tool_use", "mcp_tool_result", "mcp_tool_listing", "container_upload",
)  # fmt: skip

#: Anthropic's.
MESSAGES: Rules = {
    **_EVERYWHERE,
    "metadata": ignored("requests are not stored"),
    "thread": ParameterRule("is not supported: conversations are not stored; send the whole conversation, without thread"),
    "compaction": ParameterRule("is not supported: nothing is summarized here; shorten the conversation yourself"),
    "mcp_servers": ignored("connect to the servers yourself and offer their tools"),
    "container": ignored("code runs in your own tools"),
    "diagnostics": _CACHE,
    "inference_geo": ignored("policies and routes decide where models run"),
    "speed": _SPEED,
    "fallbacks": ignored("routes have fallbacks"),
    "fallback_credit_token": _SPEED,
    "billing_policy": _USER,
    "output_config.task_budget": ignored("max_tokens limits an answer, and budgets limit keys"),
    "thinking.block_binding": COPIED,
    "messages.clear_at": ignored("instructions stay where they are"),
    "messages.output_config": ignored("the request's own output_config counts"),
    "messages.content[fallback]": COPIED,
    "messages.content.caller": COPIED,
    "messages.content.toolset_name": COPIED,
    "messages.content[redacted_thinking]": ignored("only its vendor can read it"),
    **dict.fromkeys((f"messages.content[{kind}]" for kind in _SERVER_BLOCKS), ignored("only its vendor has these tools")),
    "messages.content[*]": ParameterRule("must be text, image, document, search_result, tool_use, tool_result or thinking"),
    "messages.content.content[tool_reference]": _OFFERED,
    "messages.content.content[browser_state]": ignored("only its vendor has these tools"),
    "messages.content.content[*]": ParameterRule("must be text, image, document or search_result"),
    **{f"messages.content.{at}source[{kind}]": rule for at in ("", "content.") for kind, rule in _SOURCES.items()},
    "tools.strict": ignored("the arguments of a required call always match its schema"),
    "tools.eager_input_streaming": ignored("arguments are always streamed as the model writes them"),
    "tools.defer_loading": _OFFERED,
    "tools.allowed_callers": _OFFERED,
    "tools.input_examples": _OFFERED,
    "tools[*]": OTHER_TOOLS,
}
