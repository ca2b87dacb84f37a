"""The settings of backups."""

import re
import socket
from collections.abc import Iterator
from datetime import time
from typing import Annotated, Literal
from urllib.parse import parse_qs, urlsplit

from msgspec import Meta

from features.backup.contract import BackupState
from shared import config
from shared.config import Settings, Variable
from shared.stores import object_credentials

_Days = Annotated[int, Meta(ge=1, le=36500)]
#: As PostgreSQL writes sizes.
_SIZE = re.compile(r"([1-9]\d{0,5})(MB|GB|TB)")
_TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d")
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UNITS = {"MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}


class BackupSettings(Settings, frozen=True, kw_only=True):
    """For the agent and the commands of backups."""

    backup_to: Annotated[
        str | None,
        Variable(
            "BACKUP_TO",
            "the backup store: a folder, s3://bucket/prefix or gs://bucket/prefix; unset: no backups",
            is_store=True,
        ),
    ] = None
    backup_recipients: Annotated[
        tuple[str, ...],
        Variable("BACKUP_RECIPIENTS", "who can decrypt backups: comma-separated age recipients; `aicli stack backup keygen` prints one"),
    ] = ()
    backup_at: Annotated[str, Variable("BACKUP_AT", "when to make a base backup each day, as HH:MM in UTC")] = "02:30"
    backup_ship_seconds: Annotated[
        int,
        Meta(ge=1, le=3600),
        Variable("BACKUP_SHIP_SECONDS", "seconds between uploads of the newest commits: the most that you lose with a disk"),
    ] = 30
    backup_pitr_days: Annotated[_Days, Variable("BACKUP_PITR_DAYS", "days in which you can restore to any second")] = 7
    backup_days: Annotated[_Days, Variable("BACKUP_DAYS", "days to keep one backup a day")] = 30
    backup_log_days: Annotated[_Days, Variable("BACKUP_LOG_DAYS", "days to keep copies of program logs")] = 90
    backup_prune: Annotated[bool, Variable("BACKUP_PRUNE", "delete old backups; off if the credentials of BACKUP_TO can't delete")] = True
    backup_base_after_wal: Annotated[
        str, Variable("BACKUP_BASE_AFTER_WAL", "also make a base backup after this much write-ahead log, to limit the time of a restore")
    ] = "4GB"
    backup_wal_most: Annotated[
        str,
        Variable(
            "BACKUP_WAL_MOST", "write-ahead log to keep while BACKUP_TO fails (max_slot_wal_keep_size); beyond it, backups start over"
        ),
    ] = "8GB"
    backup_mb_per_second: Annotated[
        Annotated[int, Meta(ge=0, le=1024)] | None,
        Variable("BACKUP_MB_PER_SECOND", "how fast a base backup reads; 0: no limit; unset: 5 for each processor, at most 50"),
    ] = None
    backup_database: Annotated[
        Literal["auto", "stream", "managed"],
        Variable(
            "BACKUP_DATABASE",
            "stream: we copy the database; managed: its provider does; auto: stream for the embedded one and with BACKUP_DATABASE_URL",
        ),
    ] = "auto"
    backup_database_url: Annotated[
        str | None,
        Variable("BACKUP_DATABASE_URL", "your own PostgreSQL (15 or newer) as a role with REPLICATION, to copy it", secret=True),
    ] = None
    site_name: Annotated[str | None, Variable("SITE_NAME", "name of this site, for backups; by default the host name")] = None
    aws_access_key_id: object_credentials.AwsKeyId = None
    aws_secret_access_key: object_credentials.AwsSecret = None
    aws_session_token: object_credentials.AwsToken = None
    aws_region: object_credentials.AwsRegion = None
    aws_endpoint_url: object_credentials.AwsUrl = None
    google_credentials: object_credentials.GoogleFile = None

    @property
    def base_backup_time(self) -> time:
        return time.fromisoformat(self.backup_at)

    @property
    def site(self) -> str:
        return self.site_name or re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip("-._")[:64] or "site"

    @property
    def base_after_wal_bytes(self) -> int:
        return _bytes_of(self.backup_base_after_wal)

    @property
    def wal_most_bytes(self) -> int:
        return _bytes_of(self.backup_wal_most)

    @property
    def streams_database(self) -> bool:
        return self.backup_database != "managed" and self.backup_database_url is not None

    @property
    def credentials(self) -> dict[str, str]:
        return object_credentials.of(self)

    def mistakes(self) -> Iterator[str]:
        yield from object_credentials.mistakes("BACKUP_TO", self.backup_to)
        if self.backup_recipients:
            yield from _mistakes_of_recipients(self.backup_recipients)
        elif self.backup_to is not None:
            yield "BACKUP_RECIPIENTS is not set, and BACKUP_TO needs it: run `aicli stack backup keygen FILE`, which prints a recipient"
        sizes = {"BACKUP_BASE_AFTER_WAL": self.backup_base_after_wal, "BACKUP_WAL_MOST": self.backup_wal_most}
        wrong = [name for name, size in sizes.items() if not _SIZE.fullmatch(size)]
        yield from (f"{name}: {sizes[name]!r} is no size; write one such as 512MB or 4GB" for name in wrong)
        if not wrong and self.base_after_wal_bytes > self.wal_most_bytes:
            yield "BACKUP_BASE_AFTER_WAL is larger than BACKUP_WAL_MOST"
        if not _TIME.fullmatch(self.backup_at):
            yield f"BACKUP_AT: {self.backup_at!r} is no time; write one such as 02:30"
        if self.site_name is not None and not _SITE.fullmatch(self.site_name):
            yield f"SITE_NAME: {self.site_name!r} must have letters, digits, dots, - and _ only, at most 64"
        if self.backup_database_url is not None:
            parts = urlsplit(self.backup_database_url)
            if parts.scheme not in ("postgresql", "postgres"):
                yield "BACKUP_DATABASE_URL does not start with postgresql://"
            elif {"password", "sslpassword", "passfile"} & parse_qs(parts.query).keys():
                yield "BACKUP_DATABASE_URL: put the password before the host, as in postgresql://user:password@host/database"

    def mistakes_beside(self, own: Settings) -> Iterator[str]:
        if self.backup_database == "stream" and config.value_of(own, "DATABASE_URL") is not None and self.backup_database_url is None:
            yield "BACKUP_DATABASE=stream: BACKUP_DATABASE_URL is not set, the URL of your PostgreSQL for a role with REPLICATION"


def _bytes_of(text: str) -> int:
    return int(text[:-2]) * _UNITS[text[-2:]]


def _mistakes_of_recipients(recipients: tuple[str, ...]) -> Iterator[str]:
    try:
        from pyrage import RecipientError, x25519  # noqa: PLC0415 - only with backups
    except ImportError:
        yield "BACKUP_RECIPIENTS: its packages are missing: install requirements-server.txt of a release, or run make setup in a checkout"
        return
    for text in recipients:
        try:
            x25519.Recipient.from_str(text)
        except RecipientError:
            yield f"BACKUP_RECIPIENTS: {text[:80]!r} is no age recipient; it starts with age1, and `aicli stack backup keygen` prints one"


class BackupStateSettings(Settings, frozen=True, kw_only=True):
    """For auth."""

    backup_state: Annotated[
        BackupState,
        Variable(
            "BACKUP_STATE",
            "on: the backup agent reports here; off: there are no backups; missing: the same, with an alert. `make up` sets it by "
            "BACKUP_TO, BIND_HOST and DHT_HOST",
        ),
    ] = BackupState.OFF


#: Service -> what it reads. `backup` is the agent.
SETTINGS = {"auth": BackupStateSettings, "backup": BackupSettings, "stack": BackupSettings}
