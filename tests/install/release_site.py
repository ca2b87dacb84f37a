"""The files of a release, made of this checkout, and a mirror of a public package index, on a machine of the made-up Internet."""

import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.nat.topology import PUBLIC_ADDRESSES, Internet
from tools import release
from tools.packages import install_index
from tools.packages.install_index import Target

URL = f"http://{PUBLIC_ADDRESSES[0]}:8080"
#: Loads the script again if the connection breaks.
SCRIPT = f"curl -fsSL --retry 5 --retry-connrefused {URL}/release/install.sh"
#: As a company that has a mirror.
_PIP = f"[global]\nindex-url = {URL}/install/simple\ntrusted-host = {PUBLIC_ADDRESSES[0]}\n"


def make(folder: Path, targets: Iterable[Target]) -> Path:
    (folder / "release").mkdir()
    release.build(folder / "release", f"{URL}/release", None)
    install_index.fill(folder / "install", targets)
    return folder


def use_mirror(home: Path) -> Path:
    """Write a file for PIP_CONFIG_FILE."""
    file = home / "pip.conf"
    file.write_text(_PIP, encoding="utf-8")
    return file


@asynccontextmanager
async def site(net: Internet, files: Path) -> AsyncIterator[Path]:
    """Serve the files on the Internet. Yield the log of what was asked for."""
    asked = files / "asked"
    with asked.open("wb") as log:
        words = ("-m", "http.server", "8080", "--bind", PUBLIC_ADDRESSES[0], "--directory", str(files))
        process = await net.public.start(sys.executable, *words, stdout=log, stderr=log)
    try:
        yield asked
    finally:
        # Nothing may run there any more: a machine's programs end with its user.
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
