"""The pure parts of the scripts under Node.js, and the playground's code samples, executed."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyhyperswarm import find_node

from tests import tiers

HERE = Path(__file__).parent
SECONDS = 200
CURL = 'curl() { for word in "$@"; do printf "%s\\0" "$word"; done; }\n'
AICLI = 'aicli() { for word in "$@"; do printf "%s\\0" "$word"; done; }\n'
OPENAI = """
import json, sys, types
class OpenAI:
    def __init__(self, **given):
        print(json.dumps(given))
        self.chat = types.SimpleNamespace(completions=types.SimpleNamespace(create=lambda **given: print(json.dumps(given)) or []))
sys.modules["openai"] = types.SimpleNamespace(OpenAI=OpenAI)
"""


async def run(*command: str, stdin: str = "", **environment: str) -> str:
    """Return the program's output, which is also the message if it fails."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT, env={"PATH": "/usr/bin:/bin", **environment}
    )
    async with asyncio.timeout(SECONDS):
        output, _ = await process.communicate(stdin.encode())
    assert process.returncode == 0, output.decode()[-8000:]
    return output.decode()


@pytest.mark.parametrize("file", sorted(HERE.glob("*.test.js")), ids=lambda path: path.name)
async def test_pure_modules(file: Path) -> None:
    output = await run(str(find_node()), "--test", "--test-reporter=tap", str(file), ROUNDS=str(tiers.volume(3000)))
    assert "\n# fail 0" in output
    assert "\n# skipped 0" in output
    assert "\n# pass 0" not in output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The request and its code samples, as written by chat.test.js."""
    file = tmp_path_factory.mktemp("samples") / "samples.json"
    environment = {"PATH": "/usr/bin:/bin", "SAMPLES_TO": str(file)}
    subprocess.run([str(find_node()), str(HERE / "chat.test.js")], env=environment, check=True, capture_output=True, timeout=SECONDS)
    return json.loads(file.read_text(encoding="utf-8"))


async def test_curl_sample_sends_any_request(made: Any) -> None:
    output = await run("bash", stdin=CURL + made["samples"]["curl"], AIMESH_API_KEY="aip_x")
    words = output.split("\0")
    assert words[0] == "https://ai.example/v1/chat/completions"
    assert "Authorization: Bearer aip_x" in words
    assert json.loads(words[words.index("-d") + 1]) == {**made["request"], "stream": True}


async def test_python_sample_sends_any_request(made: Any) -> None:
    output = await run(sys.executable, "-", stdin=OPENAI + made["samples"]["python"], AIMESH_API_KEY="aip_x")
    client, request = map(json.loads, output.splitlines())
    assert client == {"base_url": "https://ai.example/v1", "api_key": "aip_x"}
    assert request == {**made["request"], "stream": True}


async def test_javascript_sample_sends_any_request(made: Any, tmp_path: Path) -> None:
    package = tmp_path / "node_modules" / "aimesh-client"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"type": "module", "exports": "./index.js"}', encoding="utf-8")
    client = "export class AIInferenceClient { constructor(given) { this.given = given }\n"
    client += "async *stream(asked) { yield JSON.stringify([this.given, asked]) } }"
    (package / "index.js").write_text(client, encoding="utf-8")
    sample = tmp_path / "sample.mjs"
    sample.write_text(made["samples"]["javascript"], encoding="utf-8")
    given, asked = json.loads(await run(str(find_node()), str(sample), AIMESH_API_KEY="aip_x"))
    assert given == {"apiKey": "aip_x", "baseUrl": "https://ai.example"}
    expected = dict(made["request"])
    assert asked == {"maxTokens": expected.pop("max_tokens"), "reasoningEffort": expected.pop("reasoning_effort"), **expected}


async def test_aicli_sample_sends_any_prompt(made: Any) -> None:
    words = (await run("bash", stdin=AICLI + made["samples"]["aicli"])).split("\0")[:-1]
    system, question = (message["content"] for message in made["request"]["messages"])
    options = ["--temperature", "0.2", "--max-tokens", "64", "--reasoning-effort", "low"]
    assert words == ["infer", "-m", "llama-3", *options, "-s", system, question]
