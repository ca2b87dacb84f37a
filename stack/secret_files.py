"""The secrets of a stack: each is generated once and stored in its own file, which is never overwritten.

A file is written whole or not at all, so the next ``init`` repairs an interrupted one.
"""

import base64
import secrets
from collections.abc import Callable

from shared import features
from shared.identity import credentials, node_keys, private_file
from shared.types import Role
from stack.stack_home import StackHome

#: Name of the key file -> role of the node. ``echo`` is the worker of AIMESH_ECHO=1; those named inference-… serve other servers' models.
NODES: dict[str, Role] = {
    "auth": Role.AUTH,
    "gateway": Role.GATEWAY,
    "worker": Role.WORKER,
    "echo": Role.WORKER,
    **{f"inference-{backend}": Role.WORKER for backend in features.backends()},
    "metrics": Role.METRICS,
    "web": Role.WEB,
    "client": Role.CLIENT,
    "operator": Role.OPERATOR,
    "backup": Role.BACKUP,
}
#: The services with tables, each with its own PostgreSQL role and schema.
DATABASE_ROLES = ("auth", "gateway", "metrics")
#: Those that log in: the services, and the backup agent, which only copies.
LOGIN_ROLES = (*DATABASE_ROLES, "backup")
POSTGRES_ADMIN = "aimesh_admin"
#: What auth alone gets.
OF_AUTH = (
    "key_pepper", "data_key", "admin_password", "admin_key", "mesh_ca.nk",
    "nats_issuer.nk", "nats_callout.nk", "nats_sys.nk", "enrollment.json",
)  # fmt: skip
#: Signs backups and the recovery log's copies.
RECOVERY_KEY = "recovery.nk"
#: Opens this stack's own backups, but not their secrets. Created when backups are used first.
BACKUP_IDENTITY = "backup_identity"


def _token() -> bytes:
    """Return 256 bits, in characters that need no quoting in URLs and shells."""
    return secrets.token_urlsafe(32).encode()


def _password() -> bytes:
    """Return 128 bits in groups that people can type, without letters that look alike."""
    letters = "abcdefghjkmnpqrstuvwxyz23456789"
    return "-".join("".join(secrets.choice(letters) for _ in range(5)) for _ in range(5)).encode()


def _admin_key() -> bytes:
    characters = "".join(secrets.choice(credentials.ALPHABET) for _ in range(credentials.RANDOM_CHARACTERS))
    return (credentials.PREFIXES["adm"] + characters + credentials.checksum(characters)).encode()


SECRETS: dict[str, Callable[[], bytes]] = {
    "key_pepper": _token,
    #: Encrypts what auth must read again: seeds of second factors, token signing keys. Backups must include it.
    "data_key": lambda: base64.b64encode(secrets.token_bytes(32)),
    #: The first key of the first administrator, for the profile of this machine.
    "admin_key": _admin_key,
    "prompt_hash_secret": _token,
    "service_token": _token,
    "web_secret": _token,
    "web_hop_secret": _token,
    "admin_password": _password,
    #: The key of the mesh: it signs every certificate and the revocation list. Backups must include it.
    "mesh_ca.nk": node_keys.new_authority_seed,
    #: auth's: the account that signs NATS logins, the user that answers the server's questions, and the one of the system account.
    "nats_issuer.nk": node_keys.new_authority_seed,
    "nats_callout.nk": node_keys.new_seed,
    "nats_sys.nk": node_keys.new_seed,
    #: 64 hex characters, as the relay's program reads it.
    "relay_seed": lambda: secrets.token_bytes(32).hex().encode(),
    RECOVERY_KEY: node_keys.new_seed,
    POSTGRES_ADMIN: _token,
    **{f"postgres_{role}": _token for role in LOGIN_ROLES},
}


def ensure(home: StackHome) -> list[str]:
    """Create missing secrets and restrict the modes of existing ones. Return the names of the created ones."""
    made = [name for name, make in SECRETS.items() if private_file.create(home.secrets / name, make)]
    return made + [f"{name}.nk" for name in NODES if private_file.create(home.key(name), node_keys.new_seed)]


def read(home: StackHome, name: str) -> str:
    return (home.secrets / name).read_text(encoding="utf-8").strip()
