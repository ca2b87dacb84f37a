"""The JavaScript client with a whole stack: the examples of its README, an answer, an interrupted stream, and missing credentials."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from pyhyperswarm import find_node

from tests import stacks, tiers
from tests.people import Person
from tests.stacks import REPOSITORY, RunningStack, until

PACKAGE = REPOSITORY / "sdk" / "javascript"
SECONDS = 200
EXAMPLES = re.findall(r"```javascript\n(.*?)```", (PACKAGE / "README.md").read_text(encoding="utf-8"), re.DOTALL)
#: What each example prints.
PRINTED = (
    r"Explain quantum computing\n",
    r"one two three\n3 tokens\n",
    r"stopped: true\n",
    r" one two three\n4 tokens of thoughts\n",
    r"(get_weather: (Kyiv|Lima)\n)+true\n",
    r"no such model; there are .*\becho\b.*\n",
    r"\{[^}]*dimensions: 16,[^}]*limits: [1-9][^}]*\}\n[0-9.]+ credits, budget of this key: none\n",
    r"pro: true\n",
)
BEGINNING = """\
import { AIInferenceClient } from 'aimesh-client'
const client = new AIInferenceClient({ apiKey: process.env.AIMESH_API_KEY, baseUrl: process.env.AIMESH_BASE_URL })
const tell = (said) => console.log(JSON.stringify(said))
"""


async def run(folder: Path, program: str, url: str, key: str, **variables: str) -> tuple[int | None, str, str]:
    """Run a program of a user who has installed the package."""
    (folder / "node_modules").mkdir(exist_ok=True)
    installed = folder / "node_modules" / "aimesh-client"
    if not installed.exists():
        installed.symlink_to(PACKAGE)
    (folder / "program.mjs").write_text(program, encoding="utf-8")
    pipe = asyncio.subprocess.PIPE
    environment = {"AIMESH_BASE_URL": url, "AIMESH_API_KEY": key, **variables}
    process = await asyncio.create_subprocess_exec(
        str(find_node()), "program.mjs", cwd=folder, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    try:
        async with asyncio.timeout(SECONDS):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out.decode(), err.decode()


async def run_program(folder: Path, program: str, url: str, key: str) -> Any:
    status, out, err = await run(folder, BEGINNING + program, url, key)
    assert status == 0, err
    return json.loads(out)


@pytest.mark.parametrize("service", tiers.by_day(["gateway", "web"], "gateway", group="clients"))
@pytest.mark.parametrize("number", tiers.by_day(range(len(PRINTED)), 0, 4, group="clients"))
async def test_readme_examples_work(stack: RunningStack, ann: Person, tmp_path: Path, number: int, service: str) -> None:
    assert len(EXAMPLES) == len(PRINTED)
    login = {"AIMESH_USER": ann.username, "AIMESH_PASSWORD": ann.password}
    status, out, err = await run(tmp_path, EXAMPLES[number], stack.url(service), ann.key.secret, **login)
    assert status == 0, err
    assert re.fullmatch(PRINTED[number], out, re.DOTALL), out


async def test_answer_streams_in_order(stack: RunningStack, ann: Person, tmp_path: Path) -> None:
    answer = await run_program(
        tmp_path, "tell(await client.inference({ prompt: 'a b c', model: 'echo', maxTokens: 2 }))", stack.url("web"), ann.key.secret
    )
    assert (answer["text"], answer["model"], answer["finishReason"]) == ("a b", "echo", "length")
    assert answer["usage"] == {"promptTokens": 3, "completionTokens": 2, "totalTokens": 5, "reasoningTokens": 0}
    await stack.recorded(ann.id, 1)
    async with stack.database("gateway") as database:
        row = await database.fetchrow("SELECT user_id, tokens_used FROM request_logs WHERE id = $1", answer["requestId"])
    assert (row["user_id"], row["tokens_used"]) == (ann.id, 5)


async def test_missing_key_is_reported(stack: RunningStack, tmp_path: Path) -> None:
    program = """
    const about = (error) => [error.name, error.code, error.status, error.requestId !== null]
    const told = (call) => call.catch(about)
    tell([await told(client.inference({ prompt: 'a' })), await told(client.stream({ prompt: 'a' }).finish()), await told(client.quota())])
    """
    assert (
        await run_program(tmp_path, program, stack.url("gateway"), "aip_live_nobody")
        == [["NotAuthenticated", "not_authenticated", 401, True]] * 3
    )


async def test_login_with_an_expired_access_token_continues(stack: RunningStack, ann: Person, tmp_path: Path) -> None:
    program = """
    import { login } from 'aimesh-client'
    const baseUrl = process.env.AIMESH_BASE_URL
    const session = await login({ baseUrl, username: process.env.AIMESH_USER, password: process.env.AIMESH_PASSWORD })
    const mine = new AIInferenceClient({ session: { ...session, accessToken: 'eyJ.of.yesterday' }, baseUrl })
    const calls = Array.from({ length: 5 }, () => mine.inference({ prompt: 'a b', model: 'echo' }))
    const texts = (await Promise.all(calls)).map(({ text }) => text)
    tell({ texts, isAnother: mine.session.sessionToken !== session.sessionToken })
    """
    login = {"AIMESH_USER": ann.username, "AIMESH_PASSWORD": ann.password}
    status, out, err = await run(tmp_path, BEGINNING + program, stack.url("web"), ann.key.secret, **login)
    assert status == 0, err
    assert json.loads(out) == {"texts": ["a b"] * 5, "isAnother": True}


@asynccontextmanager
async def cutting(url: str, cuts_at: list[int]) -> AsyncIterator[str]:
    """A proxy for ``url`` that cuts its first connections after some bytes of the answer, and forwards later ones completely."""
    target = urlsplit(url)
    left = list(cuts_at)

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None) -> None:
        passed = 0
        try:
            while (most is None or passed < most) and (part := await reader.read(65536 if most is None else most - passed)):
                passed += len(part)
                writer.write(part)
                await writer.drain()
        except ConnectionError:
            pass  # the other end was cut
        finally:
            writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        most = left.pop(0) if left else None
        upstream, to_upstream = await asyncio.open_connection(target.hostname, target.port)
        asking = tasks.create_task(pass_on(reader, to_upstream, None))
        await pass_on(upstream, writer, most)
        asking.cancel()
        to_upstream.close()

    async with asyncio.TaskGroup() as tasks:
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        try:
            yield "http://{}:{}".format(*server.sockets[0].getsockname())
        finally:
            server.close()
    assert not left, "it was cut as often as was meant"


async def test_interrupted_stream_continues_as_one_request(stack: RunningStack, ann: Person, tmp_path: Path) -> None:
    # An event has about 75 bytes: cut before the first event, inside it, and inside later ones.
    program = """
    const prompt = Array.from({ length: 300 }, (_, index) => `w${index}`).join(' ')
    const pieces = []
    const stream = client.stream({ prompt, model: 'echo' })
    for await (const piece of stream) pieces.push(piece)
    tell({ whole: pieces.join('') === prompt && stream.answer.text === prompt, pieces: pieces.length, answer: stream.answer })
    """
    async with cutting(stack.url("gateway"), [0, 700, 1500, 9000]) as url:
        result = await run_program(tmp_path, program, url, ann.key.secret)
    assert (result["whole"], result["pieces"], result["answer"]["usage"]["completionTokens"]) == (True, 300, 300)
    await stack.recorded(ann.id, 1)
    async with stack.database("gateway") as database:
        assert await database.fetchval("SELECT count(*) FROM request_logs WHERE user_id = $1", ann.id) == 1


async def busy_slots(stack: RunningStack) -> float:
    url = (await stack.programs())["inference-echo"].url
    async with httpx.AsyncClient(trust_env=False) as http:
        return stacks.total((await http.get(f"{url}/metrics")).text, "ai_platform_worker_slots", state="busy", model="echo")


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param("stream.abort()", id="an abort"),
        pytest.param("break", id="a loop that is left", marks=pytest.mark.nightly("clients")),
        pytest.param("control.abort(new Error('enough'))", id="a signal", marks=pytest.mark.nightly("clients")),
    ],
)
async def test_leaving_a_stream_frees_the_model(stack: RunningStack, ann: Person, tmp_path: Path, leave: str) -> None:
    # An answer of 5 s; without a cancellation, the gateway completes the answers of requests with a key.
    program = f"""
    const control = new AbortController()
    const stream = client.stream({{ prompt: 'word '.repeat(1000), model: 'echo', signal: control.signal }})
    try {{
      for await (const piece of stream) if (stream.text.length > 50) {leave}
    }} catch (error) {{
      if (error.message !== 'enough') throw error
    }}
    tell({{ length: stream.text.length, answer: stream.answer }})
    """
    result = await run_program(tmp_path, program, stack.url("web"), ann.key.secret)
    assert (result["length"] < 200, result["answer"]) == (True, None)

    async def is_free() -> bool:
        return await busy_slots(stack) == 0

    await until(is_free, what="the slot is free")

    async def counted() -> int | None:
        async with stack.database("gateway") as database:
            tokens: int | None = await database.fetchval("SELECT tokens_used FROM request_logs WHERE user_id = $1", ann.id)
        return tokens

    # A thousand tokens of the prompt, and the few that arrived.
    assert 1000 < await until(counted, what="the row is written") < 1500
