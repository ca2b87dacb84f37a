"""Clients and frameworks as users install them, each in its own environment, against a whole stack with the default model.

Each program requests a chat, a stream, a forced tool call and, if its client can, embeddings and structured output; it fails at the
first wrong answer. The clients in GUARDED also read answers with masked words, and answers that are refused at their first word.

Each client in CHECKS also has a folder of checks: one for each field, event and helper that its own types and documentation name, with a
scripted model. What is refused is listed there, with the reason. A field of a later version that has no check fails.

The packages come from the machine's indexes, pinned by hash. To renew the pins:

    echo PACKAGES | uv pip compile - --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate
    npm update --package-lock-only --omit-lockfile-registry-resolved

LiteLLM 1.106 imports `mcp` for tools without requiring it, so its pins name both.
"""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import pytest

from tests import feature_parts, people
from tests.clients import scripted_model
from tests.stacks import RunningStack
from tests.testnet import free_port

HERE = Path(__file__).parent
INSTALL_SECONDS, RUN_SECONDS = 600, 300
#: Each has `requirements`, `programs` and `checks`.
FOLDERS = (HERE, *feature_parts.files("clients"))
_OF_FEATURES = feature_parts.modules("clients.facts")
#: Client -> its folder.
PYTHON = {path.stem: folder for folder in FOLDERS for path in sorted((folder / "requirements").glob("*.txt"))}
NODE = sorted(path.name for path in (HERE / "node").glob("*.js") if path.name != "checklist.js")
GUARDED = {"anthropic", "langchain", "openai", "ai-sdk.js", "anthropic.js", "openai.js"}
#: They know only a port of their machine, where `aicli serve` is.
LOCAL = {name for part in _OF_FEATURES for name in part.LOCAL}
#: Client -> the number of its checks.
CHECKS = {
    "anthropic": 316,
    "instructor": 168,
    "langchain": 155,
    "openai": 290,
    "pydantic_ai": 270,
    "ai-sdk.js": 224,
    "anthropic.js": 233,
    "openai.js": 255,
} | {name: count for part in _OF_FEATURES for name, count in part.CHECKS.items()}
#: The most features that a client has and that we refuse.
MAX_REFUSED = 3
#: The policy of a key; its pattern matches any word.
POLICY = """\
  key:{key}:
    guard:
      answer: {{own: {action}}}
      patterns: [{{name: word, pattern: '[A-Za-z]{{2,40}}', max_length: 40}}]
"""
#: Output shown of a failed command; a traceback fits.
SHOWN_CHARACTERS = 4000

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 2 * RUN_SECONDS + 100)


@asynccontextmanager
async def served_locally(stack: RunningStack) -> AsyncIterator[dict[str, str]]:
    """Serve the mesh at a port of this machine; yield the variables of programs that know only that port."""
    port = free_port()
    serving = await stack.start_aicli("serve", "--port", str(port))
    try:
        assert serving.stdout is not None
        assert await serving.stdout.readline(), "it did not start"
        yield {"OLLAMA_HOST": f"http://localhost:{port}", "OPENAI_API_KEY": "", "ANTHROPIC_API_KEY": ""}
    finally:
        serving.terminate()
        await serving.communicate()


async def make_guarded_keys(stack: RunningStack, place: Path) -> dict[str, str]:
    """Return the variables with a key whose policy masks words, and one whose policy refuses them."""
    async with people.api_client(stack) as api_client:
        keys = {action: (await api_client.register("guarded")).key for action in ("mask", "refuse")}
    file = place / "policies.yaml"
    file.write_text("policies:\n" + "".join(POLICY.format(key=key.id, action=action) for action, key in keys.items()))
    done = await stack.aicli("admin", "config", "apply", "-f", str(file))
    assert done.status == 0, done.err
    return {"MASKED_API_KEY": keys["mask"].secret, "REFUSED_API_KEY": keys["refuse"].secret}


async def run(stack: RunningStack, place: Path, seconds: float, *command: str, **more: str) -> str:
    """Run a command as a user and return its output. Fail if it does."""
    mine = {
        "OPENAI_BASE_URL": stack.url("gateway") + "/v1",
        "ANTHROPIC_BASE_URL": stack.url("gateway"),
        "ANTHROPIC_API_KEY": stack.api_key,
        "OPENAI_API_KEY": stack.api_key,
        "MODEL": "smollm2",
        "SCRIPTED_MODEL": scripted_model.MODEL,
        "HOME": str(place),
        "LITELLM_LOCAL_MODEL_COST_MAP": "true",
    }
    process = await asyncio.create_subprocess_exec(
        *command, cwd=place, env=os.environ | mine | more, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(seconds):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode("utf-8", "replace")
    assert process.returncode == 0, text[-SHOWN_CHARACTERS:]
    return text


def ensure_complete(name: str, output: str) -> None:
    """Fail if a client has another number of checks than CHECKS says, or more that is refused than MAX_REFUSED."""
    ended = json.loads(output.splitlines()[-1])
    print(name, ended)
    assert ended["checks"] == CHECKS[name]
    assert len(ended["refused"]) <= MAX_REFUSED


def test_every_folder_of_checks_is_run() -> None:
    python = {path.parent.name for folder in FOLDERS for path in folder.glob("checks/*/__main__.py")}
    assert set(CHECKS) == python | {f"{path.parent.name}.js" for path in HERE.glob("node/checks/*/main.js")}


def test_every_python_client_has_a_program() -> None:
    assert {path.stem.removesuffix("_python"): folder for folder in FOLDERS for path in (folder / "programs").glob("*.py")} == PYTHON


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", PYTHON)
async def test_a_python_client(stack: RunningStack, tmp_path: Path, name: str) -> None:
    folder = PYTHON[name]
    python, pins = str(tmp_path / "venv/bin/python"), str(folder / "requirements" / f"{name}.txt")
    await run(stack, tmp_path, INSTALL_SECONDS, sys.executable, "-m", "venv", str(tmp_path / "venv"))
    await run(
        stack,
        tmp_path,
        INSTALL_SECONDS,
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--only-binary",
        ":all:",
        "--require-hashes",
        "-r",
        pins,
    )
    keys = await make_guarded_keys(stack, tmp_path) if name in GUARDED else {}
    async with served_locally(stack) if name in LOCAL else nullcontext(keys) as variables:
        await run(stack, tmp_path, RUN_SECONDS, python, str(folder / "programs" / f"{name}_python.py"), **variables)
        if name in CHECKS:
            path = os.pathsep.join(map(str, {HERE: None, folder: None}))
            output = await run(stack, tmp_path, RUN_SECONDS, python, "-m", f"checks.{name}", PYTHONPATH=path, **variables)
            ensure_complete(name, output)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", NODE)
async def test_a_node_client(stack: RunningStack, tmp_path: Path, name: str) -> None:
    shutil.copytree(HERE / "node", tmp_path, dirs_exist_ok=True)
    await run(stack, tmp_path, INSTALL_SECONDS, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    keys = await make_guarded_keys(stack, tmp_path) if name in GUARDED else {}
    await run(stack, tmp_path, RUN_SECONDS, "node", name, **keys)
    if name in CHECKS:
        ensure_complete(name, await run(stack, tmp_path, RUN_SECONDS, "node", f"checks/{name.removesuffix('.js')}/main.js", **keys))
