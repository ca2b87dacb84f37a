"""The settings of backups."""

from pathlib import Path

import pytest

from features.backup.settings import BackupSettings
from features.backup.stack import sealing
from shared import config, errors
from stack import settings

RECIPIENT = sealing.recipient_of(sealing.new_identity())


def load_backup(**variables: str) -> BackupSettings:
    return config.load(BackupSettings, {"BACKUP_TO": "/srv/backup", "BACKUP_RECIPIENTS": RECIPIENT, **variables})


def test_defaults_of_backups() -> None:
    loaded = load_backup()
    assert (loaded.backup_at, loaded.base_backup_time.hour, loaded.backup_ship_seconds) == ("02:30", 2, 30)
    assert (loaded.base_after_wal_bytes, loaded.wal_most_bytes) == (4 << 30, 8 << 30)
    assert loaded.site, "the host has a name"


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"BACKUP_RECIPIENTS": ""}, "BACKUP_RECIPIENTS is not set, and BACKUP_TO needs it: run `aicli stack backup keygen FILE`"),
        ({"BACKUP_RECIPIENTS": "ssh-ed25519 AAAA"}, "BACKUP_RECIPIENTS: 'ssh-ed25519 AAAA' is no age recipient; it starts with age1"),
        ({"BACKUP_WAL_MOST": "8 gigs"}, "BACKUP_WAL_MOST: '8 gigs' is no size; write one such as 512MB or 4GB"),
        ({"BACKUP_BASE_AFTER_WAL": "9GB"}, "BACKUP_BASE_AFTER_WAL is larger than BACKUP_WAL_MOST"),
        ({"BACKUP_AT": "25:00"}, "BACKUP_AT: '25:00' is no time; write one such as 02:30"),
        ({"BACKUP_TO": "ftp://host/x"}, "BACKUP_TO is neither a folder nor s3://bucket/prefix nor gs://bucket/prefix"),
        ({"BACKUP_TO": "s3://key:secret@bucket"}, "BACKUP_TO: name a bucket, and put credentials into AWS_ACCESS_KEY_ID"),
        ({"SITE_NAME": "../x"}, "SITE_NAME: '../x' must have letters, digits"),
        ({"BACKUP_DATABASE_URL": "postgresql://u@h/d?password=x"}, "BACKUP_DATABASE_URL: put the password before the host"),
    ],
)
def test_mistakes_about_backups(variables: dict[str, str], words: str) -> None:
    with pytest.raises(errors.BadSettings) as caught:
        load_backup(**variables)
    assert words in caught.value.message


def test_all_mistakes_about_backups_are_reported_together() -> None:
    with pytest.raises(errors.BadSettings) as caught:
        load_backup(BACKUP_RECIPIENTS="nobody", BACKUP_AT="noon", BACKUP_WAL_MOST="much")
    assert [name in caught.value.message for name in ("BACKUP_RECIPIENTS:", "BACKUP_AT:", "BACKUP_WAL_MOST:")] == [True] * 3


def test_stream_from_another_server_needs_its_address() -> None:
    with pytest.raises(errors.BadSettings, match="BACKUP_DATABASE=stream: BACKUP_DATABASE_URL is not set"):
        settings.load({"BACKUP_DATABASE": "stream", "DATABASE_URL": "postgresql://u:p@h/d"})


@pytest.mark.parametrize(
    ("database", "url", "streams"),
    [("auto", "", False), ("auto", "postgresql://h/d", True), ("managed", "postgresql://h/d", False), ("stream", "postgresql://h/d", True)],
)
def test_which_databases_are_copied(database: str, url: str, *, streams: bool) -> None:
    assert load_backup(BACKUP_DATABASE=database, BACKUP_DATABASE_URL=url).streams_database is streams


def test_credentials_are_kept_only_for_a_store_that_reads_them() -> None:
    machine = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "GOOGLE_APPLICATION_CREDENTIALS": "g.json"}
    here = Path("/here")
    assert not settings.merge({}, machine, here).keys() & machine.keys()
    assert settings.merge({"BACKUP_TO": "/srv"}, machine, here) == {"BACKUP_TO": "/srv"}
    assert settings.merge({}, {"BACKUP_TO": "s3://b/p", **machine}, here).keys() == {
        "BACKUP_TO",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
    }
    google = settings.merge({}, {"BACKUP_TO": "gs://b", **machine}, here)
    assert google == {"BACKUP_TO": "gs://b", "GOOGLE_APPLICATION_CREDENTIALS": "/here/g.json"}
    loaded = load_backup(BACKUP_TO="s3://b/p", AWS_REGION="x", AWS_SECRET_ACCESS_KEY="s")
    assert loaded.credentials == {"AWS_REGION": "x", "AWS_SECRET_ACCESS_KEY": "s"}


def test_a_folder_is_saved_as_an_absolute_path() -> None:
    assert settings.merge({}, {"BACKUP_TO": "backup"}, Path("/here"))["BACKUP_TO"] == "/here/backup"
