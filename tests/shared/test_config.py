"""Settings from an environment: what is read, what is refused, and that all mistakes are told together."""

from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from shared import config, errors
from shared.config import Variable


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    port: Annotated[int, Meta(ge=0, le=65535), Variable("PORT", "where to listen")] = 3000
    url: Annotated[str, Variable("URL", "the server")]
    password: Annotated[str, Variable("PASSWORD", "the secret", secret=True)]
    ratio: Annotated[float, Variable("RATIO", "a number")] = 0.5
    on: Annotated[bool, Variable("ON", "a switch")] = False
    file: Annotated[Path | None, Variable("FILE", "a path")] = None
    aliases: Annotated[dict[str, str], Variable("ALIASES", "other names")] = msgspec.field(default_factory=dict)
    names: Annotated[tuple[str, ...], Variable("NAMES", "several")] = ()


GIVEN = {"URL": "nats://x", "PASSWORD": "p"}


def test_defaults_hold_where_nothing_is_set() -> None:
    assert config.load(Settings, GIVEN) == Settings(url="nats://x", password="p")


def test_every_kind_of_value_is_read() -> None:
    environment = GIVEN | {"PORT": "1", "RATIO": "2", "ON": "Yes", "FILE": "/a/b", "ALIASES": "a=b, c = d", "NAMES": "x, y"}
    assert config.load(Settings, environment) == Settings(
        port=1, url="nats://x", password="p", ratio=2.0, on=True, file=Path("/a/b"), aliases={"a": "b", "c": "d"}, names=("x", "y")
    )


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    assert config.load(Settings, GIVEN | {"PORT": "", "FILE": " "}).port == 3000


def test_a_value_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("from the file\n")
    environment = {"URL": "x", "PASSWORD_FILE": str(tmp_path / "password")}
    assert config.load(Settings, environment).password == "from the file"


def test_all_mistakes_are_told_together_and_no_secret_is() -> None:
    class Strict(Settings, frozen=True, kw_only=True):
        secret_number: Annotated[int, Variable("SECRET_NUMBER", "a secret number", secret=True)] = 0

    environment = {"PORT": "99999", "ON": "maybe", "ALIASES": "a", "PASSWORD_FILE": "/does/not/exist", "SECRET_NUMBER": "hunter2"}
    with pytest.raises(errors.BadSettings) as told:
        config.load(Strict, environment)
    for name in ("PORT", "URL is not set", "ON", "ALIASES", "PASSWORD_FILE", "SECRET_NUMBER"):
        assert name in told.value.message
    assert "hunter2" not in told.value.message
