"""Write a wheel. The same files make the same bytes."""

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

_TIME = (2020, 2, 2, 0, 0, 0)


def write(files: Mapping[str, bytes], info: str, target: Path) -> None:
    """Write these files, and a RECORD of them into the folder ``info``."""
    hashes = {name: base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode() for name, body in files.items()}
    rows = [*(f"{name},sha256={hashes[name]},{len(files[name])}" for name in sorted(files)), f"{info}/RECORD,,", ""]
    with zipfile.ZipFile(target, "w") as archive:
        for name, body in (*sorted(files.items()), (f"{info}/RECORD", "\n".join(rows).encode())):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr = (0o100755 if "/bin/" in name else 0o100644) << 16
            archive.writestr(entry, body, zipfile.ZIP_DEFLATED)
