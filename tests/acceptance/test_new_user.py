"""A new user follows the README: from a copy of the files in git to an answer of the real model, and to `make down`.

Everything is real: `make up` creates a new virtual environment and installs it from the lock files. Only two things exist
already, as on any machine at the second attempt: pip's cache, and the built wheel of llama-cpp-python, which `make test`
puts into XDG_CACHE_HOME when it installs its own environment. The test has its own ports and folders.
"""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import stacks

pytestmark = pytest.mark.nightly("install")

ROOT = Path(__file__).parents[2]
_KEEP = ("HOME", "LANG", "TMPDIR", "XDG_CACHE_HOME")
_KEY = re.compile(r"aip_(?:live|adm)_[A-Za-z0-9]{49}\b")


@dataclass(frozen=True, slots=True)
class Ended:
    status: int
    out: str
    err: str
    seconds: float


@dataclass(frozen=True, slots=True)
class NewUser:
    """A user at a shell in a fresh copy of the repository."""

    folder: Path
    environment: dict[str, str]

    def types(self, line: str, *, deadline_seconds: float = 60, **variables: str) -> Ended:
        started = time.monotonic()
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=deadline_seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return Ended(done.returncode, done.stdout, done.stderr, time.monotonic() - started)

    def does(self, line: str, **variables: str) -> str:
        """Return the output of a command that must succeed, with the environment activated as the README says."""
        done = self.types(f"source .venv/bin/activate && {line}", **variables)
        assert done.status == 0, f"{line}\n{done.out}{done.err}"
        return done.out

    @property
    def home(self) -> Path:
        return Path(self.environment["AIMESH_HOME"])


def kept_environment() -> dict[str, str]:
    """Return what a user's shell has: caches, settings of pip and npm, and the system's PATH, without an activated environment."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEEP or name.startswith(("PIP_", "NPM_CONFIG_", "npm_config_", "SSL_", "HTTP", "CMAKE_"))
    }
    path = (part for part in os.environ["PATH"].split(os.pathsep) if not (Path(part) / "activate").exists())
    return {**kept, "PATH": os.pathsep.join(path)}


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewUser]:
    folder = tmp_path_factory.mktemp("new-user") / "aimesh"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    own = {
        "XDG_CONFIG_HOME": str(folder.parent / "config"),
        "AIMESH_HOME": str(folder / ".aimesh"),
        **stacks.free_ports(),
    }
    person = NewUser(folder, {**kept_environment(), **own})
    yield person
    person.types("make down")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(300)
def test_two_commands_lead_to_an_answer(user: NewUser) -> None:
    done = user.types("make up", deadline_seconds=280)
    assert done.status == 0, done.out + done.err
    # The progress, with durations.
    assert re.search(r"installing the packages of aimesh: done in \d+ s", done.err)
    assert re.search(r"gateway is ready \([\d.]+ s\)", done.err)
    # The question, the model's answer, and where everything is.
    answer = done.out.partition("Say hello'\n")[2].partition("\n\naimesh is up.")[0]
    assert len(answer.split()) > 2
    web, gateway = (f"http://127.0.0.1:{user.environment[f'{name}_SERVICE_PORT']}" for name in ("WEB", "GATEWAY"))
    for shown in (web, f"{gateway}/v1", f"{gateway}/docs", "admin", "source .venv/bin/activate"):
        assert shown in done.out
    page = user.home / "admin.txt"
    assert str(page) in done.out
    assert page.stat().st_mode & 0o777 == 0o600
    found = dict(re.findall(r"^([\w ]+): +(\S+)$", page.read_text(), re.MULTILINE))
    assert found["web"] == web
    assert found["user"] == "admin"
    assert _KEY.fullmatch(found["API key"])
    # Neither secret is shown or logged.
    everything = done.out + done.err + "".join(log.read_text(errors="replace") for log in (user.home / "logs").glob("*.log"))
    assert found["password"] not in everything
    assert not _KEY.search(everything)
    assert not [path for path in user.home.rglob("*") if path.stat().st_mode & 0o077 and "postgres" not in path.parts]


def test_the_first_five_minutes(user: NewUser) -> None:
    # Temperature 0: a random answer of this model may be nothing but asterisks.
    assert len(user.does('aicli infer "Say hello" --temperature 0').split()) > 1
    answer = json.loads(user.does('echo "Summarise: …" | aicli infer - --max-tokens 20 --json'))
    assert (answer["model"], answer["usage"]["completion_tokens"] <= 20) == ("smollm2", True)
    assert user.does("aicli models").splitlines()[1].split()[0] == "smollm2"
    nodes = json.loads(user.does("aicli nodes --json"))
    assert sorted(node["service"] for node in nodes if node["usable"]) == ["auth", "gateway", "inference", "metrics", "web"]
    key = user.does("aicli keys create laptop").strip()
    assert _KEY.fullmatch(key)
    assert "laptop" in user.does("aicli keys list")
    assert "first key" in user.does("aicli usage")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/login-link\?token=\S+\n", user.does("aicli dashboard --print"))
    assert "WRONG" not in user.does("aicli doctor")

    web, gateway = (f"http://127.0.0.1:{user.environment[f'{name}_SERVICE_PORT']}" for name in ("WEB", "GATEWAY"))
    body = '{"model": "smollm2", "stream": true, "max_tokens": 5, "temperature": 0, "messages": [{"role": "user", "content": "Say hello"}]}'
    bearer = '-H "Authorization: Bearer $AIMESH_KEY" -H "Content-Type: application/json"'
    streamed = user.does(f"curl -sS {web}/v1/chat/completions {bearer} -d '{body}'", AIMESH_KEY=key)
    assert streamed.count("data: {") > 4
    assert streamed.endswith("data: [DONE]\n\n")
    body = '{"prompt": "Write a poem about AI", "model": "llama3", "max_tokens": 5}'
    line = f'curl -sS {gateway}/api/inference -H "X-API-Key: $AIMESH_KEY" -H "Content-Type: application/json" -d \'{body}\''
    # An alias of smollm2; the answer has the name in the request.
    assert json.loads(user.does(line, AIMESH_KEY=key))["model"] == "llama3"


def test_ctrl_c_stops_the_answer(user: NewUser) -> None:
    """Run the command on a terminal, like a user."""
    master, slave = pty.openpty()
    # setsid makes this the command's controlling terminal, so that ^C becomes a signal.
    command = ["setsid", "--ctty", "--wait", str(user.folder / ".venv/bin/aicli"), "infer", "--temperature", "0", "--max-tokens", "500"]
    command.append("Tell me a long story about a bridge.")
    environment = {**user.environment, "TERM": "xterm"}
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, cwd=user.folder, env=environment) as process:
        os.close(slave)
        os.read(master, 1)  # the answer has begun
        os.write(master, b"\x03")
        pressed = time.monotonic()
        assert process.wait(timeout=10) == 128 + signal.SIGINT
        assert time.monotonic() - pressed < 2
    os.close(master)


def test_make_up_again_takes_seconds_and_repairs(user: NewUser) -> None:
    again = user.types("make up")
    assert again.status == 0, again.out + again.err
    assert again.seconds < 10
    assert "everything is already running" in again.err
    keys = user.does("aicli keys list --json")

    rows = {row["name"]: row for row in json.loads(user.does("aicli stack status --json"))}
    os.kill(rows["gateway"]["pid"], signal.SIGKILL)
    (user.home / "profile.toml").unlink()
    (user.home / "keys" / "web.nk").unlink()
    shutil.rmtree(next((user.folder / ".venv").glob("lib/*/site-packages/litestar")))
    repaired = user.types("make up", deadline_seconds=100)
    assert repaired.status == 0, repaired.out + repaired.err
    for said in ("litestar", "web.nk"):
        assert said in repaired.err
    user.does("make status")
    # The stack's secrets still contain the key of the lost profile, so `make up` creates no new one.
    assert len(json.loads(user.does("aicli keys list --json"))) == len(json.loads(keys))


def test_a_taken_port_is_told_with_who_has_it(user: NewUser) -> None:
    taken = user.environment["GATEWAY_SERVICE_PORT"]
    done = user.types("make up", AIMESH_HOME=str(user.folder / "other"))
    assert done.status != 0
    error = next(line for line in done.err.splitlines() if line.startswith("error: "))
    assert re.search(rf"port {taken} for gateway is taken by \S+ \(pid \d+\): stop it, or set GATEWAY_SERVICE_PORT", error)
    assert "Traceback" not in done.err


def test_down_leaves_the_data(user: NewUser) -> None:
    user.does("aicli register alice --email alice@example.org --password-stdin <<< 'correct horse battery'")
    down = user.types("make down")
    assert (down.status, "your data is kept" in down.out) == (0, True), down.out + down.err
    assert user.types("make status").status != 0
    refused = user.types("source .venv/bin/activate && aicli infer hello")
    assert (refused.status, refused.err.count("\n"), "make up" in refused.err) == (5, 1, True), refused.err

    assert user.types("make up").status == 0
    assert "alice" in user.does("aicli admin users list")
