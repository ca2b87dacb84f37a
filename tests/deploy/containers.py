"""`docker compose up` without Docker: `init`'s files, compose's commands and environments, real servers.

Names of the compose network (`nats:4222`) become ports on this machine, and `/run/aimesh` becomes that container's folder; everything
else is as in compose.yaml.
"""

import dataclasses
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType, ModuleType

from shared.types import MeshName
from stack import initialization
from stack import stack_home as homes
from stack.servers import nats_server, postgres, valkey
from tests.deploy import compose_file
from tests.servers import PostgresServer, running
from tests.testnet import free_port

START_SECONDS = 60
_OFFER = "GET /mesh HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n"
WEB_SOCKET_KEY, WEB_SOCKET_ACCEPT = "AAAAAAAAAAAAAAAAAAAAAA==", "ICX+Yqv66kxgM0FcWaLWlFLwTAI="
STOP_SECONDS = 35


def hand_out_program() -> ModuleType:
    """Import deploy/docker/hand_out.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("hand_out", compose_file.ROOT / "deploy/docker/hand_out.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hand_out"] = module
    spec.loader.exec_module(module)
    return module


def run_init(folder: Path, environment: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Run the `init` service, twice because it must be repeatable; return its folder, which has a folder of files for each container."""
    hand_out = hand_out_program()
    home = homes.locate({"AIMESH_HOME": str(folder / "state")})
    for _ in range(2):
        initialization.ensure(home, environment, folder)
        for name, recipient in hand_out.recipients(home, MeshName("home")):
            (folder / "handed" / name).mkdir(parents=True, exist_ok=True)
            hand_out.hand_out(folder / "handed" / name, dataclasses.replace(recipient, user=os.getuid()))
    return folder / "handed"


class Container:
    """A process in place of a container."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, env=environment, cwd=compose_file.ROOT, stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )

    def stop(self) -> int:
        """Stop it as `docker compose stop` does; return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


class House:
    """A stack: the containers of the default profile."""

    def __init__(self, folder: Path, handed: Path, database: PostgresServer) -> None:
        self.folder = folder
        self.handed = handed
        self.ports = {service: free_port() for service in ("auth", "gateway", "inference", "metrics", "web")}
        self.places = {place: f"127.0.0.1:{free_port()}" for place in ("nats:4222", "nats:8080", "valkey:6379")}
        self.places["gateway-entry:3002"] = f"127.0.0.1:{self.ports['gateway']}"
        self._database = database

    def here(self, text: str) -> str:
        """Replace an address of the compose network with one of this machine."""
        for name, place in self.places.items():
            text = text.replace(name, place)
        # PostgreSQL listens on a Unix socket here.
        return re.sub(r"@postgres:5432/(\w+)", rf"@/\1?host={self._database.folder}&port=5432", text)

    def move_in(self) -> None:
        """Rewrite the addresses in the files that `init` handed out."""
        for name in ("database_url", "redis_url"):
            for path in self.handed.glob(f"*/{name}"):
                path.write_text(self.here(path.read_text(encoding="utf-8")), encoding="utf-8")

    def provision(self) -> None:
        """Run the `provision` service: its statements with `init`'s environment, as this server's superuser."""
        (command,) = compose_file.services()["provision"]["command"]
        command = command.replace("/run/aimesh", str(self.handed / "postgres")).replace("/provision.sql", "stack/servers/postgres.sql")
        # This server's superuser has another name and password.
        command = command.replace("-U aimesh_admin", "-U admin").replace("-h postgres", f"-h {self._database.folder}")
        command = command.replace("pg_isready", f"{postgres.binaries()}/pg_isready")
        command = command.replace(
            "exec psql", f"export PGPASSWORD=$(cat {self._database.server.admin_password}) && exec {postgres.binaries()}/psql"
        )
        subprocess.run(["sh", "-ec", command], cwd=compose_file.ROOT, check=True, timeout=120)

    def nats(self) -> Container:
        conf = self.handed / "nats" / "nats.conf"
        text = conf.read_text(encoding="utf-8").replace("8222", str(free_port()))
        for port in ("4222", "8080"):
            text = text.replace(f"0.0.0.0:{port}", self.places[f"nats:{port}"])
        conf.write_text(text, encoding="utf-8")
        return Container("nats", [str(nats_server.binary()), "--config", str(conf)], {}, self.folder / "nats.log")

    def valkey(self) -> Container:
        conf = self.handed / "valkey" / "valkey.conf"
        text = conf.read_text(encoding="utf-8").replace("port 6379", f"port {self.places['valkey:6379'].rpartition(':')[2]}")
        conf.write_text(text.replace("dir /data", f"dir {self.folder}") + "bind 127.0.0.1\n", encoding="utf-8")
        return Container("valkey", [str(valkey.binary()), str(conf)], {}, self.folder / "valkey.log")

    def service(self, name: str, replica: int = 1, **dotenv: str) -> Container:
        """Start one replica. All share the volumes of the service; each has its own /tmp."""
        given = compose_file.environment_of(name, {"PROMETHEUS_PORT": "0", "OPEN_REGISTRATION": "true", **dotenv})
        called = name if replica == 1 else f"{name}-{replica}"
        self.ports.setdefault(called, free_port())
        self.volume(name).mkdir(exist_ok=True)
        (temporary := self.folder / f"{called}-tmp-{secrets.token_hex(4)}").mkdir()
        places = {"/run/aimesh": str(self.handed / name), "/tmp": str(temporary), "/var/lib/aimesh": str(self.volume(name))}
        environment = {key: _moved(self.here(value), places) for key, value in given.items()}
        environment[f"{name.upper()}_SERVICE_PORT"] = str(self.ports[called])
        environment |= {"PATH": os.environ["PATH"], "PYTHONPATH": str(compose_file.ROOT)}
        # The proxy and web are on loopback here.
        if environment.get("TRUSTED_PROXIES"):
            environment["TRUSTED_PROXIES"] = "127.0.0.1"
        command = [sys.executable, "-m", compose_file.module_of(name)]
        return Container(called, command, environment, self.folder / f"{called}.log")

    def volume(self, service: str) -> Path:
        return self.folder / f"{service}-data"

    def proxy(self, **replicas: tuple[str, ...]) -> Container:
        """Start the service `proxy` with these replicas of web and the gateway."""
        self.ports |= {each: free_port() for each in ("proxy-web", "proxy-gateway", "proxy")}
        return run_proxy(self.folder, self.handed / "proxy", self.ports, replicas)

    def url(self, service: str, path: str) -> str:
        return f"http://127.0.0.1:{self.ports[service]}{path}"

    def wait_until_ready(self, container: Container) -> None:
        give_up_at = time.monotonic() + START_SECONDS
        while not self._is_ready(container.name):
            assert container.process.poll() is None, container.log.read_text(encoding="utf-8")[-3000:]
            assert time.monotonic() < give_up_at, container.log.read_text(encoding="utf-8")[-3000:]
            time.sleep(0.05)

    def _is_ready(self, service: str) -> bool:
        try:
            with urllib.request.urlopen(self.url(service, "/readyz"), timeout=3):
                return True
        except (OSError, urllib.error.HTTPError):
            return False


def run_proxy(folder: Path, handed: Path, ports: Mapping[str, int], replicas: Mapping[str, tuple[str, ...]]) -> Container:
    """Start the service `proxy` on this machine, with the replica addresses that the engine's DNS would return."""
    text = compose_file.mounted("proxy")["/usr/local/etc/haproxy/haproxy.cfg"].read_text(encoding="utf-8")
    for name, port in (("web", 3000), ("gateway", 3002)):
        servers = "\n".join(f"    server {each} 127.0.0.1:{ports[each]}" for each in replicas[name])
        text = text.replace(f"    server-template {name} 20 {name}-entry:{port}", servers)
        text = text.replace(f"bind :{port}", f"bind 127.0.0.1:{ports[f'proxy-{name}']}")
    text = text.replace("127.0.0.1:8404", f"127.0.0.1:{ports['proxy']}").replace("/run/aimesh", str(handed))
    (file := folder / "proxy.cfg").write_text(text.replace(" resolvers engine init-addr none", ""), encoding="utf-8")
    command = [*compose_file.services()["proxy"]["command"][:-1], str(file)]
    path = f"{os.environ['PATH']}:/usr/sbin"
    return Container("proxy", [shutil.which(command[0], path=path) or command[0], *command[1:]], {"PATH": path}, folder / "proxy.log")


@contextmanager
def web_socket(port: int, headers: str = "") -> Iterator[tuple[socket.socket, BufferedReader]]:
    """Open a WebSocket at /mesh; yield what comes after the server has accepted it."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as machine, machine.makefile("rb") as answer:
        machine.sendall(f"{_OFFER}Sec-WebSocket-Key: {WEB_SOCKET_KEY}\r\n{headers}\r\n".encode())
        assert answer.readline().startswith(b"HTTP/1.1 101 ")
        while answer.readline() != b"\r\n":
            pass
        yield machine, answer


def _moved(text: str, places: dict[str, str]) -> str:
    for inside, here in places.items():
        if text.startswith(inside):
            return here + text.removeprefix(inside)
    return text


@contextmanager
def house(folder: Path) -> Iterator[tuple[House, dict[str, Container]]]:
    """Start everything that `docker compose up` starts by default, and wait until it is ready."""
    with ExitStack() as ends, running(PostgresServer) as database:
        built = House(folder, run_init(folder), database)
        built.move_in()
        built.provision()
        containers: dict[str, Container] = {}
        for start in (built.nats, built.valkey):
            container = start()
            ends.callback(container.end)
        for name in built.ports:
            containers[name] = built.service(name)
            ends.callback(containers[name].end)
        for container in containers.values():
            built.wait_until_ready(container)
        yield built, containers
