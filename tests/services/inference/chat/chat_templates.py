"""Our own chat templates, built like those of published model families, and their special tokens."""

from services.inference.models import model_discovery

#: Qwen's and Hermes' style: tools in the system message, calls and answers between tags.
HERMES = """
{%- macro described(tool) -%}{{ tool | tojson }}{%- endmacro -%}
{%- set state = namespace(rest=messages) -%}
{{- '<|im_start|>system\\n' -}}
{%- if messages[0].role == 'system' -%}
    {{- messages[0].content | trim -}}{%- set state.rest = messages[1:] -%}
{%- else -%}
    {{- 'You answer questions.' -}}
{%- endif -%}
{%- if tools -%}
    {{- '\\nTools:\\n<tools>' -}}
    {%- for tool in tools %}{{ '\\n' ~ described(tool) }}{% endfor -%}
    {{- '\\n</tools>\\nCall one with <tool_call>{"name": ..., "arguments": ...}</tool_call>.' -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- for message in state.rest -%}
    {%- if message.role == 'tool' -%}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response>' -}}
    {%- else -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- generation -%}{{- message.content -}}{%- endgeneration -%}
    {%- for call in message.tool_calls or [] -%}
        {%- set call = call.function if call.function is defined else call -%}
        {{- '<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' ~ (call.arguments | tojson) ~ '}\\n</tool_call>' -}}
    {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

#: Llama 3's style: the date, tools before the first question, one call that is the whole answer.
LLAMA = """
{{- bos_token -}}
{%- if not tools is defined %}{% set tools = none %}{% endif -%}
{%- set day = strftime_now('%d %b %Y') if strftime_now is defined else '1 Jan 2000' -%}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + day + '<|eot_id|>' -}}
{%- for message in messages -%}
    {%- if 'tool_calls' in message -%}
        {%- if message.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif -%}
        {%- set call = message.tool_calls[0].function -%}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' -}}
        {{- call.arguments | tojson -}}{{- '}<|eot_id|>' -}}
    {%- elif message.role == 'tool' -%}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content | tojson + '<|eot_id|>' -}}
    {%- else -%}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' -}}
        {%- if tools is not none and loop.first -%}
            {{- 'Functions, to be called with JSON:\\n' -}}
            {%- for tool in tools %}{{ tool | tojson(indent=4) }}{{ '\\n' }}{% endfor -%}
        {%- endif -%}
        {{- message.content | trim + '<|eot_id|>' -}}
    {%- endif -%}
{%- endfor -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' if add_generation_prompt -}}
"""

#: Mistral's style: tools before the last question, ids of nine characters, alternating roles.
MISTRAL = """
{%- set asked = messages | selectattr('role', 'equalto', 'user') | list -%}
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {%- if tools is not none and message == asked[-1] -%}
            {{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' -}}
        {%- endif -%}
        {{- '[INST] ' + message['content'] + '[/INST]' -}}
    {%- elif message.tool_calls is defined and message.tool_calls is not none -%}
        {{- '[TOOL_CALLS][' -}}
        {%- for call in message.tool_calls -%}
            {%- if call.id | length != 9 %}{{ raise_exception('ids of calls have nine characters') }}{% endif -%}
            {%- set written = call.function | tojson -%}
            {{- written[:-1] + ', "id": "' + call.id + '"}' -}}{{- ', ' if not loop.last -}}
        {%- endfor -%}
        {{- ']' + eos_token -}}
    {%- elif message['role'] == 'tool' -%}
        {%- if message.tool_call_id | length != 9 %}{{ raise_exception('ids of calls have nine characters') }}{% endif -%}
        {{- '[TOOL_RESULTS]{"call_id": "' + message.tool_call_id + '", "content": ' + message.content | tojson + '}[/TOOL_RESULTS]' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- ' ' + message['content'] + eos_token -}}
    {%- else -%}
        {{- raise_exception('a role that nobody knows') -}}
    {%- endif -%}
{%- endfor -%}
"""

#: Gemma's style: no system message, and the assistant is called the model.
GEMMA = """
{{- bos_token -}}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system messages') }}{% endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif -%}
"""

#: Phi's style: a token for each role.
PHI = """
{%- for message in messages -%}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif -%}
"""

#: The special tokens of all families above.
SPECIAL = (
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end|>"),
    *("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    *("<tool_call>", "</tool_call>", "<start_of_turn>", "<end_of_turn>"),
)


def packaged() -> str:
    """Return the chat template of the packaged model, read from the file's header without llama.cpp."""
    with model_discovery.packaged().open("rb") as file:
        header = file.read(4 * 1024 * 1024)
    key = b"tokenizer.chat_template"
    # After the key: four bytes of type, eight of length, then the text.
    at = header.index(key) + len(key) + 4
    length = int.from_bytes(header[at : at + 8], "little")
    return header[at + 8 : at + 8 + length].decode()
