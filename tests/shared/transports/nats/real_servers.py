"""Real nats-servers that are configured unlike a mesh's own: with passwords, in operator mode, as a cluster."""

import base64
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nkeys

from tests.testnet import NatsServer, free_port


def server_with(folder: Path, configuration: str) -> NatsServer:
    """Make a server without starting it; ``configuration`` follows the address."""
    folder.mkdir(exist_ok=True)
    server = NatsServer(folder)
    configure(server, configuration)
    return server


def configure(server: NatsServer, configuration: str) -> None:
    (server.folder / "nats.conf").write_text(f'listen: "127.0.0.1:{server.port}"\npid_file: "{server.folder}/nats.pid"\n{configuration}\n')


@contextmanager
def cluster(folder: Path, size: int, configuration: str = "") -> Iterator[list[NatsServer]]:
    """Servers that know each other."""
    ports = [free_port() for _ in range(size)]
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
    servers = []
    for number, port in enumerate(ports):
        shape = f'server_name: "s{number}"\ncluster {{\n  name: "c"\n  listen: "127.0.0.1:{port}"\n  routes: [{routes}]\n}}\n'
        servers.append(server_with(folder / f"s{number}", shape + configuration))
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.kill()


@dataclass
class Operator:
    """An operator with one account; makes credentials files for its users."""

    _operator: nkeys.KeyPair = field(default_factory=lambda: _pair(nkeys.PREFIX_BYTE_OPERATOR))
    _account: nkeys.KeyPair = field(default_factory=lambda: _pair(nkeys.PREFIX_BYTE_ACCOUNT))

    @property
    def configuration(self) -> str:
        account = self._account.public_key.decode()
        limits = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
        operator_jwt = _jwt(self._operator, self._operator, {"type": "operator", "version": 2})
        account_jwt = _jwt(self._operator, self._account, {"type": "account", "version": 2, "limits": limits})
        return f"operator: {operator_jwt}\nresolver: MEMORY\nresolver_preload: {{\n  {account}: {account_jwt}\n}}"

    def credentials(self, path: Path, *, seconds: int = 3600) -> Path:
        user = _pair(nkeys.PREFIX_BYTE_USER)
        rights = {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}}
        jwt = _jwt(self._account, user, rights, seconds)
        path.touch(mode=0o600)
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )
        return path


def _pair(prefix: int) -> nkeys.KeyPair:
    return nkeys.from_seed(bytearray(nkeys.encode_seed(secrets.token_bytes(32), prefix)))


def _jwt(issuer: nkeys.KeyPair, subject: nkeys.KeyPair, nats: dict[str, object], seconds: int = 3600) -> str:
    now = int(time.time())
    claims = {
        "jti": secrets.token_hex(16), "iat": now, "exp": now + seconds, "name": "test", "nats": nats,
        "iss": issuer.public_key.decode(), "sub": subject.public_key.decode(),
    }  # fmt: skip
    text = f"{_encode({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_encode(claims)}"
    return f"{text}.{_base64(issuer.sign(text.encode()))}"


def _encode(item: object) -> str:
    return _base64(json.dumps(item).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
