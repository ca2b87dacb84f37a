"""Ollama's client with nothing but its port: a chat, a stream, embeddings and structured output."""

import json
import os

import ollama

model = os.environ["MODEL"]
messages = [{"role": "user", "content": "Say hello."}]
whole = ollama.chat(model, messages, options={"num_predict": 16, "temperature": 0})
assert whole.message.content, whole
streamed = list(ollama.chat(model, messages, options={"num_predict": 16, "temperature": 0}, stream=True))
assert "".join(part.message.content or "" for part in streamed) == whole.message.content
schema = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["age"]}
assert 0 <= json.loads(ollama.chat(model, messages, format=schema).message.content or "")["age"] <= 99
assert len(ollama.embed(model, ["one", "two"]).embeddings) == 2
