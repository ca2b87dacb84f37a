"""The secrets of a stack: made once by a CSPRNG, one file each, never written again.

A file appears whole or not at all, so an interrupted ``init`` is repaired by the next one.
"""

import base64
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from shared.identity import credentials, node_keys, private_file
from shared.types import Role
from stack.stack_home import StackHome

#: name of the key file -> role of the node. ``echo`` is the second worker that AIMESH_ECHO=1 adds.
NODES: dict[str, Role] = {
    "auth": Role.AUTH,
    "gateway": Role.GATEWAY,
    "worker": Role.WORKER,
    "echo": Role.WORKER,
    "metrics": Role.METRICS,
    "web": Role.WEB,
    "client": Role.CLIENT,
    "operator": Role.OPERATOR,
}
#: The services that keep tables, each with its own PostgreSQL role and schema.
DATABASE_ROLES = ("auth", "gateway", "metrics")
POSTGRES_ADMIN = "aimesh_admin"


def _token() -> bytes:
    """256 bits, in characters that need no quoting in a URL or a shell."""
    return secrets.token_urlsafe(32).encode()


def _hex_seed() -> bytes:
    return secrets.token_bytes(32).hex().encode()


def _password() -> bytes:
    """For people to type: 128 bits in groups, without letters that look alike."""
    letters = "abcdefghjkmnpqrstuvwxyz23456789"
    return "-".join("".join(secrets.choice(letters) for _ in range(5)) for _ in range(5)).encode()


def _data_key() -> bytes:
    return base64.b64encode(secrets.token_bytes(32))


def _admin_key() -> bytes:
    characters = "".join(secrets.choice(credentials.ALPHABET) for _ in range(credentials.RANDOM_CHARACTERS))
    return (credentials.PREFIXES["adm"] + characters + credentials.checksum(characters)).encode()


SECRETS: dict[str, Callable[[], bytes]] = {
    "key_pepper": _token,
    #: Seals what auth must read again: seeds of second factors, keys that sign tokens. A backup must hold it.
    "data_key": _data_key,
    #: The first key of the first administrator, which the profile of this machine goes on with.
    "admin_key": _admin_key,
    "prompt_hash_secret": _token,
    "service_token": _token,
    "web_secret": _token,
    "web_hop_secret": _token,
    "admin_password": _password,
    #: What the mesh is: every certificate and the revocation list are signed with it. A backup must hold it.
    "mesh_ca.nk": node_keys.new_authority_seed,
    #: 64 characters of hex, as the relay's program reads it.
    "relay_seed": _hex_seed,
    POSTGRES_ADMIN: _token,
    **{f"postgres_{role}": _token for role in DATABASE_ROLES},
}


def ensure(home: StackHome) -> list[str]:
    """Make what is missing and narrow what others could read; returns the names of what was made."""
    made = [name for name, make in SECRETS.items() if ensure_file(home.secrets / name, make)]
    return made + [f"{name}.nk" for name in NODES if ensure_file(home.key(name), node_keys.new_seed)]


def read(home: StackHome, name: str) -> str:
    return (home.secrets / name).read_text(encoding="utf-8").strip()


def ensure_file(path: Path, make: Callable[[], bytes]) -> bool:
    """Whether it had to be made. An existing file is never touched, apart from its mode."""
    if path.exists():
        if path.stat().st_mode & 0o177:
            path.chmod(0o600)
        return False
    with private_file.written(path, make() + b"\n", synced=True) as made:
        try:
            # A link fails where a rename would replace: of two that run at once, the first one's secret stays.
            os.link(made, path)
        except FileExistsError:
            return False
    return True
