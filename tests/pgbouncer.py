"""The real PgBouncer from Debian (`make test-system` installs it), between the tests and their PostgreSQL."""

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from stack.servers import postgres
from tests import capabilities
from tests.servers import PostgresServer

PORT = 6432
_START_SECONDS = 60


@contextmanager
def running(server: PostgresServer, database: str, pool_mode: str, **settings: str) -> Iterator[str]:
    """Run PgBouncer and yield the URL of the database through it."""
    capabilities.require("pgbouncer")
    found = capabilities.find_program("pgbouncer")
    assert found is not None
    password = server.server.admin_password.read_text(encoding="ascii")
    with tempfile.TemporaryDirectory(prefix="aimesh-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.joinpath("users").write_text(f'"admin" "{password}"\n', encoding="ascii")
        options = {
            "unix_socket_dir": name,
            # Do not listen on the network.
            "listen_addr": "",
            "listen_port": str(PORT),
            "auth_type": "scram-sha-256",
            "auth_file": f"{name}/users",
            "pool_mode": pool_mode,
            **settings,
        }
        lines = [
            "[databases]",
            f"* = host={server.folder} port=5432",
            "[pgbouncer]",
            *(f"{key} = {value}" for key, value in options.items()),
        ]
        folder.joinpath("pgbouncer.ini").write_text("\n".join(lines) + "\n", encoding="ascii")
        with (folder / "log").open("wb") as log:
            # PgBouncer refuses to run as root, as PostgreSQL does.
            command = postgres.unprivileged(found, "-q", str(folder / "pgbouncer.ini"))
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            give_up_at = time.monotonic() + _START_SECONDS
            while not _listens(folder / f".s.PGSQL.{PORT}"):
                started = process.poll() is None and time.monotonic() < give_up_at
                assert started, (folder / "log").read_text()
                time.sleep(0.01)
            yield f"postgresql://admin:{password}@/{database}?host={quote(name, safe='')}&port={PORT}"
        finally:
            process.terminate()
            process.wait(timeout=30)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as trial:
        return trial.connect_ex(str(path)) == 0
