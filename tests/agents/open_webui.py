"""Open WebUI with tools, used over the requests of its page: a chat with an attached image, whose answer calls the tools."""

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.agents import programs
from tests.agents.programs import Place, Program
from tests.agents.scripted_model import MODEL, Task
from tests.stacks import until
from tests.testnet import free_port

#: It imports PyTorch and creates its database.
START_SECONDS = 300
OPEN_WEBUI = Program(
    name="open-webui",
    setup="Open WebUI",
    runs=lambda _task: ((),),
    switches={
        "OFFLINE_MODE": "true",
        "HF_HUB_OFFLINE": "1",
        "ENABLE_OLLAMA_API": "false",
        "ENABLE_VERSION_UPDATE_CHECK": "false",
        "ANONYMIZED_TELEMETRY": "false",
        "DO_NOT_TRACK": "true",
        "SCARF_NO_ANALYTICS": "true",
    },
)
#: By its other connection, which knows an address and no key.
BY_OLLAMA = {"ENABLE_OLLAMA_API": "true", "ENABLE_OPENAI_API": "false"}
#: As docs/howto/accounts.md says.
BY_PERSON = {"ENABLE_FORWARD_USER_INFO_HEADERS": "true", "BYPASS_MODEL_ACCESS_CONTROL": "true"}
_TOOLS = '''
import pathlib, subprocess

class Tools:
    def write(self, path: str, content: str) -> str:
        """Write a file."""
        pathlib.Path(path).write_text(content)
        return "written"

    def read(self, path: str) -> str:
        """Read a file."""
        return pathlib.Path(path).read_bytes().decode("utf-8", "replace")

    def edit(self, path: str, old_text: str, new_text: str) -> str:
        """Replace a text in a file."""
        file = pathlib.Path(path)
        file.write_text(file.read_text().replace(old_text, new_text))
        return "edited"

    def bash(self, command: str) -> str:
        """Run a command."""
        return subprocess.run(command, shell=True, capture_output=True, text=True).stdout
'''


async def start(program: Program, place: Place, address: str, key: str, task: Task) -> str:
    """Have it do the task, and return the text that its page would show."""
    async with _serving(program, place, address, key) as http:
        person = {"name": "Ann", "email": "ann@example.org", "password": "correct horse battery"}
        http.headers["authorization"] = f"Bearer {(await _post(http, '/api/v1/auths/signup', person))['token']}"
        tools = {"id": "files", "name": "files", "content": _TOOLS, "meta": {"description": "Files", "manifest": {}}}
        await _post(http, "/api/v1/tools/create", tools)
        (model,) = [each["id"] for each in (await http.get("/api/models")).json()["data"] if each["id"].partition(":")[0] == MODEL]
        return await _chat(http, task, model)


async def ask_as(program: Program, place: Place, address: str, key: str, people: Mapping[str, str]) -> dict[str, str]:
    """Have each of these addresses, with its password, ask something in one Open WebUI. Return what each is answered."""
    shown = {}
    async with _serving(program, place, address, key) as http:
        (first, password), *others = people.items()
        await _sign_in(http, "signup", first, password)
        for email, password in others:
            await _post(http, "/api/v1/auths/add", {"name": email, "email": email, "password": password, "role": "user"})
        for email, password in people.items():
            await _sign_in(http, "signin", email, password)
            await http.get("/api/models")
            body = {"model": MODEL, "stream": False, "messages": [{"role": "user", "content": "Say hello."}]}
            shown[email] = (await http.post("/api/chat/completions", json=body)).text
    return shown


async def _sign_in(http: httpx.AsyncClient, how: str, email: str, password: str) -> None:
    person = {"name": email, "email": email, "password": password}
    http.headers["authorization"] = f"Bearer {(await _post(http, f'/api/v1/auths/{how}', person))['token']}"


async def _chat(http: httpx.AsyncClient, task: Task, model: str) -> str:
    asked, answered = str(uuid.uuid4()), str(uuid.uuid4())
    question = {"id": asked, "parentId": None, "childrenIds": [answered], "role": "user", "content": task.prompt}
    answer = {"id": answered, "parentId": asked, "childrenIds": [], "role": "assistant", "content": "", "model": model}
    history = {"messages": {asked: question, answered: answer}, "currentId": answered}
    chat = await _post(http, "/api/v1/chats/new", {"chat": {"title": "New Chat", "models": [model], "history": history}})
    image = f"data:image/png;base64,{base64.b64encode(task.image.read_bytes()).decode()}"
    content = [{"type": "text", "text": task.prompt}, {"type": "image_url", "image_url": {"url": image}}]
    body = {
        "model": model,
        "stream": True,
        "messages": [{"role": "user", "content": content}],
        "tool_ids": ["files"],
        "params": {"function_calling": "native"},
        "chat_id": chat["id"],
        "id": answered,
        "session_id": "page",
        "background_tasks": {"title_generation": True, "tags_generation": True, "follow_up_generation": True},
    }
    await _post(http, "/api/chat/completions", body)

    async def find_text() -> str | None:
        found = (await http.get(f"/api/v1/chats/{chat['id']}")).json()["chat"]["history"]["messages"][answered]
        return found["content"] if found.get("done") else None

    return await until(find_text, seconds=programs.RUN_SECONDS, what="the answer is complete")


async def _post(http: httpx.AsyncClient, path: str, body: Mapping[str, object]) -> Any:
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@asynccontextmanager
async def _serving(program: Program, place: Place, address: str, key: str) -> AsyncIterator[httpx.AsyncClient]:
    port = free_port()
    command = f"{program.lines(address).commands} --host 127.0.0.1 --port {port}"
    variables = {"AIMESH_API_KEY": key, "DATA_DIR": str(place.home / "data"), **program.switches}
    running = asyncio.create_task(programs.run(place, command, seconds=START_SECONDS + programs.RUN_SECONDS, **variables))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:

            async def is_up() -> bool:
                assert not running.done(), await running
                return (await http.get("/health")).status_code == 200

            await until(is_up, seconds=START_SECONDS, what="Open WebUI is up", ignoring=(httpx.HTTPError,))
            yield http
    finally:
        running.cancel()
        await asyncio.wait((running,))
