"""What auth reads from its environment."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from services.auth import passwords
from shared import identity, node
from shared.config import Port, Variable


class AuthSettings(node.NodeSettings, frozen=True, kw_only=True):
    port: Annotated[Port, Variable("AUTH_SERVICE_PORT", "the port of auth's health and metrics")] = 3001
    database_url: Annotated[str, Variable("DATABASE_URL", "PostgreSQL", secret=True, override="AUTH_DATABASE_URL")]
    redis_url: Annotated[str, Variable("REDIS_URL", "Redis or Valkey, for sessions and failed logins", secret=True)]
    jwt_signing_key: Annotated[
        str,
        Variable(
            "JWT_SIGNING_KEY", "the Ed25519 private key that signs access tokens, PEM (PKCS8); rather JWT_SIGNING_KEY_FILE", secret=True
        ),
    ]
    api_key_pepper: Annotated[
        str,
        Meta(min_length=32),
        Variable("API_KEY_PEPPER", "key of the HMAC that stands for an API key in the database, at least 32 characters", secret=True),
    ]
    session_timeout_seconds: Annotated[int, Meta(ge=1), Variable("SESSION_TIMEOUT", "seconds after which an unused session ends")] = 3600
    session_longest_seconds: Annotated[int, Variable("SESSION_LONGEST", "seconds after which every session ends, used or not")] = 43_200
    password_min_length: Annotated[
        int,
        Meta(ge=passwords.SHORTEST_MINIMUM, le=passwords.LONGEST),
        Variable("PASSWORD_MIN_LENGTH", "shortest password; NIST SP 800-63B-4 asks for 15 where there is no second factor"),
    ] = 8
    open_registration: Annotated[bool, Variable("OPEN_REGISTRATION", "anybody may register; false leaves it to administrators")] = True
    admin_password: Annotated[
        str | None, Variable("ADMIN_PASSWORD", "if there is no administrator yet, `admin` is made with this password", secret=True)
    ] = None

    mesh_ca_key_file: Annotated[
        Path | None,
        Variable("MESH_CA_KEY_FILE", "the file with the key of the mesh CA, an nkey seed; without it nodes join over NATS alone"),
    ] = None
    mesh_ca_next_key_file: Annotated[
        Path | None,
        Variable("MESH_CA_NEXT_KEY_FILE", "a second CA key that nodes shall trust, while one follows upon the other"),
    ] = None
    ticket_bootstrap: Annotated[
        tuple[str, ...],
        Variable("TICKET_BOOTSTRAP", "where machines elsewhere reach the DHT nodes, host:port with commas; DHT_BOOTSTRAP without it"),
    ] = ()

    def mistakes(self) -> Iterator[str]:
        yield from super().mistakes()
        if self.mesh_ca_next_key_file is not None and self.mesh_ca_key_file is None:
            yield "MESH_CA_NEXT_KEY_FILE goes with MESH_CA_KEY_FILE"
        for address in self.ticket_bootstrap:
            host, colon, port = address.rpartition(":")
            if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
                yield f"TICKET_BOOTSTRAP: {address!r} is not host:port"
        for key in self.dht_relays:
            try:
                identity.raw_of_hex(key)
            except ValueError:
                yield "DHT_RELAYS: a relay's key is 64 hexadecimal digits"
        if self.session_longest_seconds < self.session_timeout_seconds:
            yield "SESSION_LONGEST must be no shorter than SESSION_TIMEOUT"
