"""The settings of backups, for the agent and the commands. `make up` saves them with those of the stack."""

import re
import socket
from collections.abc import Iterator
from datetime import time
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qs, urlsplit

from msgspec import Meta

from shared import config
from shared.config import Variable

_Days = Annotated[int, Meta(ge=1, le=36500)]
#: As PostgreSQL writes sizes.
_SIZE = re.compile(r"([1-9]\d{0,5})(MB|GB|TB)")
_TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d")
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UNITS = {"MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
S3, GOOGLE = "s3://", "gs://"


class BackupSettings(config.Settings, frozen=True, kw_only=True):
    backup_to: Annotated[
        str | None, Variable("BACKUP_TO", "where backups go: a folder, s3://bucket/prefix or gs://bucket/prefix; unset: there are none")
    ] = None
    backup_recipients: Annotated[
        tuple[str, ...],
        Variable("BACKUP_RECIPIENTS", "who can open backups: age recipients with commas; `aicli stack backup keygen` prints one"),
    ] = ()
    backup_at: Annotated[str, Variable("BACKUP_AT", "when to make a base backup each day, as HH:MM in UTC")] = "02:30"
    backup_ship_seconds: Annotated[
        int,
        Meta(ge=1, le=3600),
        Variable("BACKUP_SHIP_SECONDS", "how often the newest commits are copied: the most that a lost disk costs"),
    ] = 30
    backup_pitr_days: Annotated[_Days, Variable("BACKUP_PITR_DAYS", "days in which you can restore to any second")] = 7
    backup_days: Annotated[_Days, Variable("BACKUP_DAYS", "days for which one backup a day is kept")] = 30
    backup_log_days: Annotated[_Days, Variable("BACKUP_LOG_DAYS", "days for which copies of program logs are kept")] = 90
    backup_prune: Annotated[
        bool, Variable("BACKUP_PRUNE", "delete backups that are too old; off if the credentials of BACKUP_TO cannot delete")
    ] = True
    backup_base_after_wal: Annotated[
        str, Variable("BACKUP_BASE_AFTER_WAL", "also make a base backup after so much write-ahead log: it bounds the time of a restore")
    ] = "4GB"
    backup_wal_most: Annotated[
        str,
        Variable(
            "BACKUP_WAL_MOST", "write-ahead log to keep while BACKUP_TO fails (max_slot_wal_keep_size); beyond it, backups start over"
        ),
    ] = "8GB"
    backup_mb_per_second: Annotated[
        int, Meta(ge=0, le=1024), Variable("BACKUP_MB_PER_SECOND", "how fast a base backup reads, so that answers stay fast; 0: no limit")
    ] = 50
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
    site_name: Annotated[str | None, Variable("SITE_NAME", "name of this site, for backups and failover; by default the host name")] = None
    site_lease: Annotated[
        Literal["advisory", "strict"],
        Variable("SITE_LEASE", "strict: a site that cannot reach BACKUP_TO for 45 s stops serving, so that another one can take over"),
    ] = "advisory"
    promote_command: Annotated[
        str | None,
        Variable("PROMOTE_COMMAND", "program that `aicli stack promote` runs to change DNS or a load balancer; it gets JSON on its input"),
    ] = None
    aws_access_key_id: Annotated[
        str | None, Variable("AWS_ACCESS_KEY_ID", "for s3://, like the next ones; by default the machine's identity", secret=True)
    ] = None
    aws_secret_access_key: Annotated[str | None, Variable("AWS_SECRET_ACCESS_KEY", "secret of AWS_ACCESS_KEY_ID", secret=True)] = None
    aws_session_token: Annotated[str | None, Variable("AWS_SESSION_TOKEN", "for temporary credentials", secret=True)] = None
    aws_region: Annotated[str | None, Variable("AWS_REGION", "region of the bucket")] = None
    aws_endpoint_url: Annotated[str | None, Variable("AWS_ENDPOINT_URL", "S3 server other than Amazon's")] = None
    google_credentials: Annotated[
        Path | None, Variable("GOOGLE_APPLICATION_CREDENTIALS", "key file for gs://; by default the machine's identity")
    ] = None

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
        """Return those for ``objects.open_store``."""
        return {
            setting.variable.name: str(value)
            for setting in config.settings_of(BackupSettings)
            if setting.variable.name in CREDENTIALS and (value := getattr(self, setting.field)) is not None
        }

    def mistakes(self) -> Iterator[str]:
        if self.backup_to is not None:
            yield from self._mistakes_of_store(self.backup_to)
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

    def _mistakes_of_store(self, address: str) -> Iterator[str]:
        if "://" not in address:
            if not address.startswith("/"):
                yield f"BACKUP_TO: {address} is not an absolute path"
            return
        if not address.startswith((S3, GOOGLE)):
            yield "BACKUP_TO is neither a folder nor s3://bucket/prefix nor gs://bucket/prefix"
        elif not urlsplit(address).netloc or urlsplit(address).username is not None:
            yield "BACKUP_TO: name a bucket, and put credentials into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


#: Only kept for the kind of store that reads them: most machines have some for other programs.
CREDENTIALS = {
    **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL"), S3),
    "GOOGLE_APPLICATION_CREDENTIALS": GOOGLE,
}


def _bytes_of(text: str) -> int:
    return int(text[:-2]) * _UNITS[text[-2:]]


def _mistakes_of_recipients(recipients: tuple[str, ...]) -> Iterator[str]:
    try:
        from pyrage import RecipientError, x25519
    except ImportError:
        yield "BACKUP_RECIPIENTS: the packages for backups are missing; run: pip install 'aimesh[backup]'"
        return
    for text in recipients:
        try:
            x25519.Recipient.from_str(text)
        except RecipientError:
            yield f"BACKUP_RECIPIENTS: {text[:80]!r} is no age recipient; it starts with age1, and `aicli stack backup keygen` prints one"
