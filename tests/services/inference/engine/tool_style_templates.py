"""Our own chat templates that render tools and calls like newer model families."""

_TOOLS = "{%- if tools %}{{ '[tools]' ~ (tools | tojson) ~ '[/tools]' }}{% endif -%}"
_CHAT = "{%- for m in messages -%}{{ '[' ~ m.role ~ ']' }}{{- m.content or '' -}}"
_CALLS = "{%- for call in m.tool_calls or [] -%}{%- set f = call.function -%}"
_END = "{%- endfor -%}{%- endfor -%}{%- if add_generation_prompt %}{{ '[assistant]' }}{% endif -%}"
_VALUE = "(v if v is string else v | tojson)"


def _template(call: str, *, instructions: str = "") -> str:
    return _TOOLS + "{{- " + repr(instructions) + " -}}" + _CHAT + _CALLS + call + _END


#: Qwen3-Coder's way, with line breaks around each value.
FUNCTION_TAGS = _template(
    "{{- '\\n<tool_call>\\n<function=' ~ f.name ~ '>\\n' -}}"
    "{%- for k, v in f.arguments.items() -%}{{- '<parameter=' ~ k ~ '>\\n' ~ " + _VALUE + " ~ '\\n</parameter>\\n' -}}{%- endfor -%}"
    "{{- '</function>\\n</tool_call>' -}}",
    instructions="Write arguments in <parameter=key> in <function=name> in <tool_call>.",
)

#: GLM's way, with line breaks between the tags, as 4.5 and 4.6 have it, …
KEY_TAGS = _template(
    "{{- '\\n<tool_call>' ~ f.name -}}"
    "{%- for k, v in f.arguments.items() -%}"
    "{{- '\\n<arg_key>' ~ k ~ '</arg_key>\\n<arg_value>' ~ " + _VALUE + " ~ '</arg_value>' -}}"
    "{%- endfor -%}{{- '\\n</tool_call>' -}}",
    instructions="Name the function and its arguments in <tool_call>.",
)
#: … and without any, as 4.7 has it.
KEY_TAGS_TIGHT = KEY_TAGS.replace("\\n<arg", "<arg").replace("\\n</tool_call>", "</tool_call>")

#: Mistral's way since 2025, …
MISTRAL_NAMED = _template("{{- '[TOOL_CALLS]' ~ f.name ~ '[ARGS]' ~ f.arguments | tojson -}}")
#: … and with the call's id, which has nine characters.
MISTRAL_WITH_ID = _template(
    "{%- if call.id | length != 9 %}{{ raise_exception('ids of calls have nine characters') }}{% endif -%}"
    "{{- '[TOOL_CALLS]' ~ f.name ~ '[CALL_ID]' ~ call.id ~ '[ARGS]' ~ f.arguments | tojson -}}"
)

_DEEPSEEK_LIST = "{{- '<｜tool▁calls▁begin｜>' if loop.first -}}{{- '<｜tool▁call▁begin｜>' -}}"
_DEEPSEEK_LIST_END = "{{- '<｜tool▁call▁end｜>' -}}{{- '<｜tool▁calls▁end｜>' if loop.last -}}"
#: DeepSeek's ways: V3 and R1, …
DEEPSEEK_FENCED = _template(
    _DEEPSEEK_LIST
    + "{{- call.type ~ '<｜tool▁sep｜>' ~ f.name ~ '\\n```json\\n' ~ f.arguments | tojson ~ '\\n```' -}}"
    + _DEEPSEEK_LIST_END
)
#: … and V3.1, which takes arguments as text only.
DEEPSEEK = _template(_DEEPSEEK_LIST + "{{- f.name + '<｜tool▁sep｜>' + f.arguments -}}" + _DEEPSEEK_LIST_END)

#: gpt-oss's way: messages in channels, with one call at most.
HARMONY = """
{{- '<|start|>system<|message|>Channels: analysis, commentary, final.<|end|>' -}}
{%- if tools %}{{ '<|start|>developer<|message|>namespace functions ' ~ (tools | tojson) ~ '<|end|>' }}{% endif -%}
{%- for m in messages -%}
    {%- if m.tool_calls -%}
        {%- set f = m.tool_calls[0].function -%}
        {{- '<|start|>assistant to=functions.' ~ f.name ~ '<|channel|>commentary json<|message|>' ~ f.arguments | tojson ~ '<|call|>' -}}
    {%- elif m.role == 'tool' -%}
        {{- '<|start|>functions.' ~ m.name ~ ' to=assistant<|channel|>commentary<|message|>' ~ m.content | tojson ~ '<|end|>' -}}
    {%- elif m.role == 'assistant' -%}
        {{- '<|start|>assistant<|channel|>final<|message|>' ~ m.content ~ '<|end|>' -}}
    {%- else -%}
        {{- '<|start|>' ~ m.role ~ '<|message|>' ~ m.content ~ '<|end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif -%}
"""
