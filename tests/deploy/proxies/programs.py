"""The four proxies as operators run them: the files of deploy/proxy with other addresses, the real program, and its certificate."""

import asyncio
import os
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tests import capabilities
from tests.deploy.proxies.acme_server import AcmeServer, acme_server, running
from tests.stacks import REPOSITORY, until
from tests.testnet import free_port

FILES = REPOSITORY / "deploy" / "proxy"
#: The site's name in the files.
SITE = "ai.example.org"
NOBODY = "255.255.255.255"


@dataclass(frozen=True, slots=True)
class Backends:
    """Ports on loopback."""

    gateways: tuple[int, int]
    web: int
    #: Port of a server in place of Grafana and Prometheus.
    internal: int
    #: Of WebSockets of a NATS server.
    mesh: int


class Proxy:
    """A running proxy; each program is a subclass."""

    name: ClassVar[str]
    #: Whether certbot gets its certificate.
    needs_certbot: ClassVar[bool] = False
    #: Whether /mesh leads to NATS, and not to web.
    reaches_nats: ClassVar[bool] = True

    def __init__(self, folder: Path, backends: Backends) -> None:
        self.folder = folder
        self.backends = backends
        self.port, self.plain_port, self.certbot_port, self.control_port = (free_port() for _ in range(4))
        self.acme: AcmeServer
        self.process: subprocess.Popen[bytes]
        self._opened: ExitStack
        #: Of the certificate's authority, as PEM.
        self.root = ""

    @contextmanager
    def run(self) -> Iterator[None]:
        with ExitStack() as self._opened:
            self.acme = self._opened.enter_context(acme_server(self.folder, self.plain_port, self.port))
            if self.needs_certbot:
                _write_placeholder(self.folder / "site.pem")
            self.write()
            self._start()
            yield

    def _start(self) -> None:
        self.process = self._opened.enter_context(running(self.command(), self.folder / "proxy.log", self.variables()))

    async def restart(self, away_seconds: float = 0.0) -> None:
        """End it with all its connections, and start it again."""
        self.process.terminate()
        await asyncio.to_thread(self.process.wait, 5)
        await asyncio.sleep(away_seconds)
        self._start()
        await until(self.serial, seconds=40, what=f"{self.name} is back", ignoring=(OSError,))

    async def ready(self) -> None:
        """Wait until it has a certificate and reaches both gateways."""
        self.root = await self.acme.read_root()
        if self.needs_certbot:
            await until(self._listens, what=f"{self.name} listens", ignoring=(OSError,))
            await self._certbot(
                *("certonly", "--standalone", "--http-01-port", str(self.certbot_port), "-d", SITE, "-m", f"admin@{SITE}"),
                *(
                    "--agree-tos",
                    "--non-interactive",
                    "--server",
                    self.acme.directory,
                    "--deploy-hook",
                    f"{FILES / 'renewed.sh'} {self.name}",
                ),
            )
        await until(self.serial, seconds=40, what=f"{self.name} has a certificate", ignoring=(OSError,))

    # --- what differs between the proxies -------------------------------------------------------------------------------

    def write(self, operators: str = NOBODY) -> None:
        """Write its files; only clients at ``operators`` may open /grafana and /prometheus."""
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def variables(self) -> dict[str, str]:
        return {}

    def reload_command(self) -> str:
        """Return a shell command; empty if the proxy detects changes itself."""
        return ""

    async def renew(self) -> None:
        """Have the certificate renewed; programs with built-in ACME renew it when it is due."""
        if self.needs_certbot:
            await self._certbot("renew", "--force-renewal", "--no-random-sleep-on-renew")

    # --- what they share ------------------------------------------------------------------------------------------------

    def copy(self, file: str, edits: Mapping[str, str]) -> None:
        """Copy a file, edited as an operator edits it."""
        text = (FILES / file).read_text(encoding="utf-8")
        first, second = self.backends.gateways
        common = {
            "127.0.0.1:3002": f"127.0.0.1:{first}",
            "127.0.0.1:3012": f"127.0.0.1:{second}",
            "127.0.0.1:3000": f"127.0.0.1:{self.backends.web}",
        }
        if self.reaches_nats:
            common["127.0.0.1:4223"] = f"127.0.0.1:{self.backends.mesh}"
        common |= dict.fromkeys(("127.0.0.1:3005", "127.0.0.1:9091"), f"127.0.0.1:{self.backends.internal}")
        for old, new in {**common, **edits}.items():
            assert old in text, f"{file} has no {old}"
            text = text.replace(old, new)
        # Atomically, because Traefik reads the file as soon as it changes.
        (self.folder / "new").write_text(text, encoding="utf-8")
        (self.folder / "new").replace(self.folder / file)

    async def reload(self) -> None:
        if command := self.reload_command():
            await _run(["sh", "-c", command], self.variables())

    def tls(self, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, protocols: tuple[str, ...] = ()) -> ssl.SSLContext:
        """A client that trusts the ACME server's root."""
        context = ssl.create_default_context(cadata=self.root)
        context.maximum_version = newest
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context

    def ensure_running(self) -> None:
        log = (self.folder / "proxy.log").read_text(encoding="utf-8", errors="replace")
        assert self.process.poll() is None, f"{self.name} ended:\n{log[-2000:]}"

    async def connect(
        self, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a TLS connection from this loopback address."""
        return await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=tls or self.tls(), server_hostname=SITE, local_addr=(address, 0), limit=2**20
        )

    async def serial(self) -> int:
        """Return the serial number of the certificate that a new connection gets."""
        self.ensure_running()
        _, writer = await self.connect()
        shown = writer.get_extra_info("peercert")
        writer.transport.abort()
        return int(shown["serialNumber"], 16)

    async def _listens(self) -> bool:
        self.ensure_running()
        _, writer = await asyncio.open_connection("127.0.0.1", self.plain_port)
        writer.close()
        return True

    async def _certbot(self, *words: str) -> None:
        folders = [f"--{name}-dir={self.folder / 'certbot'}" for name in ("config", "work", "logs")]
        variables = {
            "REQUESTS_CA_BUNDLE": str(self.acme.ca_file),
            "SITE_PEM": str(self.folder / "site.pem"),
            "RELOAD": self.reload_command(),
        }
        await _run(["certbot", *words, *folders], variables)


class Nginx(Proxy):
    name = "nginx"
    needs_certbot = True

    def write(self, operators: str = NOBODY) -> None:
        edits = {
            "listen 80 ": f"listen 127.0.0.1:{self.plain_port} ",
            "listen 443 ": f"listen 127.0.0.1:{self.port} ",
            "127.0.0.1:8888": f"127.0.0.1:{self.certbot_port}",
            "/etc/aimesh/tls/": f"{self.folder}/",
            "/var/log/nginx/": f"{self.folder}/",
            "/run/nginx.pid": str(self.folder / "nginx.pid"),
            "geo $is_operator { default 0;": f"geo $is_operator {{ default 0; {operators} 1;",
        }
        self.copy("nginx.conf", edits)

    def command(self) -> list[str]:
        return ["nginx", "-c", str(self.folder / "nginx.conf"), "-g", "daemon off;"]

    def reload_command(self) -> str:
        return f"nginx -c {self.folder / 'nginx.conf'} -s reload"


class HAProxy(Proxy):
    name = "haproxy"
    needs_certbot = True

    def write(self, operators: str = NOBODY) -> None:
        edits = {
            "bind :80\n": f"bind 127.0.0.1:{self.plain_port}\n",
            "bind :443 ": f"bind 127.0.0.1:{self.port} ",
            "127.0.0.1:8888": f"127.0.0.1:{self.certbot_port}",
            "/etc/aimesh/tls/": f"{self.folder}/",
            "log /dev/log local0": "log stdout format raw local0",
            NOBODY: operators,
        }
        self.copy("haproxy.cfg", edits)

    def command(self) -> list[str]:
        return ["haproxy", "-W", "-f", str(self.folder / "haproxy.cfg")]

    def reload_command(self) -> str:
        # As systemctl does.
        return f"kill -USR2 {self.process.pid}"


class Caddy(Proxy):
    name = "caddy"
    reaches_nats = False

    def write(self, operators: str = NOBODY) -> None:
        own = f"admin 127.0.0.1:{self.control_port}\n\thttp_port {self.plain_port}\n\thttps_port {self.port}\n\tdefault_bind 127.0.0.1"
        acme = f"acme_ca {self.acme.directory}\n\tacme_ca_root {self.acme.ca_file}\n\tstorage file_system {self.folder}/caddy"
        # 27 seconds after the certificate was issued.
        soon = "renew_interval 2s\n\trenewal_window_ratio 0.97"
        self.copy("Caddyfile", {"email admin@example.org": f"email admin@example.org\n\t{own}\n\t{acme}\n\t{soon}", NOBODY: operators})

    def command(self) -> list[str]:
        return ["caddy", "run", "--config", str(self.folder / "Caddyfile")]

    def reload_command(self) -> str:
        return f"caddy reload --config {self.folder / 'Caddyfile'} --address 127.0.0.1:{self.control_port}"


class Traefik(Proxy):
    name = "traefik"

    def write(self, operators: str = NOBODY) -> None:
        # The first setting makes Traefik check each minute for certificates to renew.
        acme = f"certificatesDuration: 1, caServer: '{self.acme.directory}', caCertificates: ['{self.acme.ca_file}']"
        routes, text = "traefik-routes.yaml", (FILES / "traefik.yaml").read_text(encoding="utf-8")
        edits = {
            ":80": f"127.0.0.1:{self.plain_port}",
            "to: site,": f"to: ':{self.port}',",
            ":443": f"127.0.0.1:{self.port}",
            "/etc/traefik/": f"{self.folder}/",
            "acme: {email:": f"acme: {{{acme}, email:",
        }
        for old, new in edits.items():
            assert old in text, old
            text = text.replace(old, new)
        (self.folder / "traefik.yaml").write_text(text, encoding="utf-8")
        self.copy(routes, {NOBODY: operators})

    def command(self) -> list[str]:
        return ["traefik", f"--configFile={self.folder / 'traefik.yaml'}"]


PROGRAMS = {program.name: program for program in (Nginx, HAProxy, Caddy, Traefik)}


async def _run(words: list[str], variables: Mapping[str, str]) -> None:
    environment = {**os.environ, "PATH": capabilities.SEARCH_PATH, **variables}
    process = await asyncio.create_subprocess_exec(
        *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environment
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert process.returncode == 0, f"{words}: {out.decode()}"


def _write_placeholder(path: Path) -> None:
    """Write a placeholder, as docs/howto/proxies.md says: the proxy needs a certificate before certbot can get one through it."""
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    subprocess.run([*words, "-subj", f"/CN={SITE}", "-keyout", path, "-out", path.with_suffix(".crt")], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
