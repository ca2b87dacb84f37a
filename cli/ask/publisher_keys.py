"""Reads the keys and signatures of publishers, and signs with them. A private key stays on this machine."""

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shared import errors

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

SIGNATURE_FILE = "model.sig"
#: Of a signature, which the gateway refuses with more.
_MAX_BYTES = 64 * 1024 + 1


def read_small(file: Path) -> bytes:
    """Return the content of a key or signature. Raises BadRequest."""
    try:
        with file.open("rb") as opened:
            return opened.read(_MAX_BYTES)
    except OSError as error:
        raise errors.BadRequest(f"{file} can't be read: {error.strerror}") from error


def read_private(file: Path) -> "EllipticCurvePrivateKey":
    """Ask for the key's password, if it has one. Raises BadRequest."""
    from shared.models import trust_bundle

    pem = read_small(file)
    try:
        return trust_bundle.read_private_key(pem, None)
    except TypeError:
        password = click.prompt("Password of the key", hide_input=True, err=True)
        return trust_bundle.read_private_key(pem, password.encode())


def sign_folder(key: "EllipticCurvePrivateKey", folder: Path) -> None:
    """Sign all files of an image layout, whose blobs are named by their SHA-256 and were checked."""
    from shared.models import trust_bundle

    paths = (each for each in folder.rglob("*") if each.is_file() and each != folder / SIGNATURE_FILE)
    files = [
        (path.relative_to(folder).as_posix(), path.name if path.parent.name == "sha256" else sha256(path.read_bytes()).hexdigest())
        for path in paths
    ]
    (folder / SIGNATURE_FILE).write_bytes(trust_bundle.sign(key, folder.name, files))
