"""All checks of Ollama's client."""

import ollama
from ollama import _types

from checks.ollama import chats, others
from checks.ollama.client import checks

checks.ensure_named("options", ollama.Options.model_fields)
checks.ensure_named("message", ollama.Message.model_fields)
checks.ensure_named("model", ollama.ListResponse.Model.model_fields)
checks.ensure_named("show", ollama.ShowResponse.model_fields)
for api, request in (("chat", _types.ChatRequest), ("generate", _types.GenerateRequest), ("embed", _types.EmbedRequest)):
    checks.ensure_named(api, request.model_fields)
checks.ensure_named("chat answer", ollama.ChatResponse.model_fields)
checks.ensure_named(
    "generate answer", [name for name in ollama.GenerateResponse.model_fields if name not in ollama.ChatResponse.model_fields]
)
assert chats
checks.run(others.REFUSED)
