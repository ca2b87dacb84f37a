"""Every command of users and administrators over HTTP instead of the mesh, on a running stack, also when the connection breaks.

Commands run in this process, since most of a command's time is its imports.
"""

import json
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli import main
from cli.cli_context import CliContext
from shared.types import Tier
from tests.people import ApiClient, Person
from tests.sdk.python import cutting_proxy
from tests.stacks import RunningStack, until

LONG = "word " * 1000
PASSWORD = secrets.token_urlsafe(18)


class Laptop:
    """A machine that has only a URL and a key."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.environment = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "config"), **environment}

    def __call__(self, *arguments: str, stdin: str = "") -> Result:
        return CliRunner().invoke(main.aicli, list(arguments), obj=CliContext(self.environment, self.folder), input=stdin)

    def out(self, *arguments: str, stdin: str = "") -> str:
        result = self(*arguments, stdin=stdin)
        assert result.exit_code == 0, f"{arguments}: {result.output}"
        return result.stdout


@pytest.fixture
def administrator(stack: RunningStack, tmp_path: Path) -> Laptop:
    return Laptop(tmp_path, AIMESH_URL=stack.url("web"), AIMESH_API_KEY=stack.api_key)


@pytest.fixture
def user(administrator: Laptop, stack: RunningStack, tmp_path: Path) -> Iterator[Laptop]:
    """A new user, registered and logged in over HTTP."""
    name = f"laptop-{secrets.token_hex(4)}"
    anonymous = Laptop(tmp_path, AIMESH_URL=stack.url("web"))
    anonymous.out("register", name, "--email", f"{name}@example.org", "--password-stdin", stdin=PASSWORD)
    laptop = Laptop(tmp_path, NAME=name)
    logged_in = laptop.out("login", stack.url("web"), name, "--password-stdin", stdin=PASSWORD)
    assert logged_in.startswith(f"Logged in as {name}; the key ")
    yield laptop
    assert laptop.out("logout") == "Logged out; the key is revoked.\n"
    assert laptop("quota").exit_code == 3


def test_every_command_of_a_user(user: Laptop, stack: RunningStack) -> None:
    assert "echo" in user.out("models")
    assert "gateway" in user.out("nodes")
    assert user.out("infer", "-m", "echo", "hello big world") == "hello big world\n"
    assert user.out("infer", "-m", "echo", "--no-stream", "one two") == "one two\n"
    answer = json.loads(user.out("infer", "-m", "echo", "--json", "one two"))
    assert (answer["text"], answer["usage"]["completion_tokens"]) == ("one two", 2)
    same = [user.out("infer", "-m", "echo", "--idempotency-key", "once", "one two") for _ in range(2)]
    assert same == ["one two\n"] * 2
    assert "requests left this hour" in user.out("quota")
    assert "requests" in user.out("usage")
    made = json.loads(user.out("keys", "create", "spare", "--json"))
    user.out("keys", "rename", "spare", "spare wheel")
    assert "spare wheel" in user.out("keys", "list")
    assert user.out("keys", "rotate", "spare wheel").startswith("aip_live_")
    user.out("keys", "revoke", made["id"])
    assert user.out("dashboard", "--print").startswith(f"{stack.url('web')}/login-link?token=")
    assert "a gateway" not in user.out("doctor")
    refused = user("admin", "users", "list")
    assert (refused.exit_code, "is no administrator" in refused.stderr) == (1, True), refused.output
    wrong = user("infer", "-m", "nothing", "hello")
    assert (wrong.exit_code, "nothing" in wrong.stderr) == (5, True), wrong.output


def test_every_command_of_an_administrator(administrator: Laptop, user: Laptop) -> None:
    name = user.environment["NAME"]
    out = administrator.out
    assert name in out("admin", "users", "list", "--json")
    for arguments in (
        ("set-tier", name, "pro"), ("set-role", name, "developer"), ("disable", name), ("enable", name), ("set-role", name, "user"),
    ):  # fmt: skip
        out("admin", "users", *arguments)
    out("admin", "credits", name, "100", "--note", "over HTTP")
    assert "100" in out("admin", "credits", name)
    out("admin", "prices", "set", "echo-of-a-laptop", "--input", "1", "--output", "2")
    assert "echo-of-a-laptop" in out("admin", "prices", "list")
    out("alerts", "list")
    silenced = json.loads(out("alerts", "silence", "--for", "10m", "--label", "node=none", "--why", "a test", "--json"))
    out("alerts", "unsilence", silenced["id"])
    out("report", "cost")
    out("report", "usage")
    for arguments in (("list",), ("verify",)):
        assert out("admin", "audit", *arguments)
    exported = out("admin", "audit", "export").splitlines()
    assert len(exported) >= 5
    assert all(json.loads(line)["hash"] for line in exported)
    assert "admin" in out("admin", "access-review", "--json")
    assert "auth" in out("admin", "nodes", "list")
    ticket = json.loads(out("admin", "tickets", "create", "--role", "client", "--json"))
    assert ticket["id"] in out("admin", "tickets", "list", "--json")
    out("admin", "tickets", "revoke", ticket["id"])
    out("admin", "ledger", "verify")
    assert "gateway" in out("top", "--once")


def test_commands_that_need_the_mesh_say_so(administrator: Laptop, stack: RunningStack) -> None:
    result = administrator("mesh", "export")
    web = stack.url("web")
    assert result.stderr == (
        f"error: this needs the mesh itself, and the profile only has {web} – use a profile of `aicli mesh connect TICKET`\n"
    )
    assert result.exit_code != 0


def test_a_broken_answer_resumes_and_is_billed_once(user: Laptop, stack: RunningStack) -> None:
    """The proxy cuts the connection twice in the middle of the answer."""
    words = [f"w{number}" for number in range(200)]
    proxied = _Cut(stack.url("web"), [4_000, 5_000])
    with proxied:
        path = next((user.folder / "config/aimesh/profiles").glob("*.toml"))
        path.write_text(path.read_text().replace(stack.url("web"), proxied.url))
        result = user("infer", "-m", "echo", " ".join(words))
        path.write_text(path.read_text().replace(proxied.url, stack.url("web")))
    assert (result.stdout, result.exit_code) == (" ".join(words) + "\n", 0), result.output
    assert "Connection lost. Resuming …" in result.stderr
    assert proxied.cuts == 2
    assert "\n1 request, " in user.out("usage")


class _Cut:
    """A proxy that cuts connections, in its own thread, because the command uses this thread's event loop."""

    def __init__(self, url: str, cuts_after: list[int]) -> None:
        self._place, self._cuts_after = url, cuts_after
        self.url, self.cuts = "", 0
        self._started, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()
        assert self._started.wait(30)

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join(30)

    def _run(self) -> None:
        import asyncio

        async def serve() -> None:
            async with cutting_proxy.before(self._place, self._cuts_after) as broken:
                self.url = broken.url
                self._started.set()
                await asyncio.to_thread(self._over.wait)
                self.cuts = broken.cuts

        asyncio.run(serve())


async def test_ctrl_c_cancels_the_answer_at_the_worker(stack: RunningStack, api_client: ApiClient) -> None:
    eve = await api_client.register("eve", Tier.PRO)
    process = await stack.start_aicli("infer", "-m", "echo", LONG, AIMESH_URL=stack.url("web"), AIMESH_API_KEY=eve.key.secret)
    assert process.stdout is not None
    await process.stdout.readexactly(50)
    process.send_signal(2)
    _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"error: interrupted\n")
    async with stack.http(eve.key.secret) as http:

        async def is_cancelled() -> bool:
            requests = (await http.get("/api/requests")).json()["requests"]
            return [request["status"] for request in requests] == ["cancelled"]

        await until(is_cancelled, seconds=30, what="the request is cancelled")


async def test_api_and_rpc_have_the_same_ids_and_rows(stack: RunningStack, ann: Person) -> None:
    """The response has the id of its row, as on all other routes."""
    async with stack.http(ann.key.secret) as http:
        body = {"request": {"prompt": "hi", "model": "echo"}}
        answer = await http.post("/rpc/gateway.processInferenceRequest", json=body)
        end = json.loads(answer.text.partition("event: end\ndata: ")[2])
        assert end["requestId"] == answer.headers["x-request-id"]
