"""The command-line tool `llm`, through its Python API."""

import os

from llm.default_plugins.openai_models import Chat

model = Chat("mesh", model_name=os.environ["MODEL"], api_base=os.environ["OPENAI_BASE_URL"], supports_tools=True, supports_schema=True)
model.key = os.environ["OPENAI_API_KEY"]
assert model.prompt("Say hello.", stream=False, max_tokens=20).text()
assert list(model.prompt("Say hello.", stream=True, max_tokens=20))
schema = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}},
    "required": ["name"],
    "additionalProperties": False,
}
assert model.prompt("Describe a person.", schema=schema, stream=False).text().startswith("{")
