"""Write the line that installs aimesh on another machine: pages, `aicli admin tickets create` and `make up` show the same one. Pure."""

import shlex
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from shared.config import Variable

#: The setting. The pattern keeps other text out of a shell.
PublicKeyPin = Annotated[
    Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]{43}=\Z")] | None,
    Variable(
        "PUBLIC_KEY_PIN",
        "base64 of the SHA-256 of the key of PUBLIC_URL's certificate, if no public authority signed it; other machines trust this key",
        on_all_replicas=True,
    ),
]


def make(
    address: str,
    *,
    pin: str | None = None,
    ca_file: Path | None = None,
    ticket: str | None = None,
    is_client: bool = False,
    redirects: bool = False,
) -> str:
    """Return the line for the mesh at this address, such as https://ai.example.org, or for a release, whose files are behind redirects.

    For a certificate that no public authority signed, ``pin`` is base64 of the SHA-256 of its key, or ``ca_file`` has it. ``ticket`` makes
    the machine a worker, or with ``is_client`` a client, which connects as workers do.
    """
    # With -k, curl accepts any certificate, and --pinnedpubkey only the one with this key.
    trust = ("-fsSL" if redirects else "-fsS") if pin is None else f"-fsSk --pinnedpubkey sha256//{pin}"
    trust += "" if ca_file is None else f" --cacert {shlex.quote(str(ca_file))}"
    arguments = "" if ticket is None else f" -s -- {shlex.quote(ticket)}"
    return f"curl {trust} {address.rstrip('/')}/install.sh | {'AIMESH_MESH=1 ' if is_client else ''}sh{arguments}"


def without_engine(line: str) -> str:
    """Return the line of a worker that only shares servers of its machine, such as Ollama, on Linux or macOS."""
    return line.replace("| sh -s", "| AIMESH_FRONT=1 sh -s", 1)


def make_powershell(address: str, ticket: str) -> str:
    """Return the line of such a worker on Windows."""
    return f"$env:AIMESH_TICKET='{ticket}'; irm {address.rstrip('/')}/install.ps1 | iex"
