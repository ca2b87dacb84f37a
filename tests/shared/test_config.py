"""Settings from an environment: what is read, what is refused, and that all mistakes are reported together."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from shared import config, errors
from shared.config import Port, Variable


class Settings(config.Settings, frozen=True, kw_only=True):
    port: Annotated[Port, Variable("PORT", "where to listen")] = 3000
    url: Annotated[str, Variable("URL", "the server")]
    password: Annotated[str, Variable("PASSWORD", "the secret", secret=True)]
    ratio: Annotated[float, Variable("RATIO", "a number")] = 0.5
    on: Annotated[bool, Variable("ON", "a switch")] = False
    file: Annotated[Path | None, Variable("FILE", "a path")] = None
    aliases: Annotated[dict[str, str], Variable("ALIASES", "other names")] = msgspec.field(default_factory=dict)
    level: Annotated[Literal["low", "high"], Variable("LEVEL", "low or high")] = "low"
    second: Annotated[Port | None, Variable("SECOND", "another port")] = None
    names: Annotated[tuple[str, ...], Variable("NAMES", "several")] = ()


GIVEN = {"URL": "nats://x", "PASSWORD": "p"}


def test_defaults_apply_where_nothing_is_set() -> None:
    assert config.load(Settings, GIVEN) == Settings(url="nats://x", password="p")


def test_every_kind_of_value_is_read() -> None:
    environment = GIVEN | {
        "PORT": "1",
        "RATIO": "2",
        "ON": "Yes",
        "FILE": "/a/b",
        "ALIASES": "a=b, c = d",
        "NAMES": "x, y",
        "LEVEL": "High",
        "SECOND": "2",
    }
    assert config.load(Settings, environment) == Settings(
        port=1, url="nats://x", password="p", ratio=2.0, on=True, file=Path("/a/b"), aliases={"a": "b", "c": "d"}, names=("x", "y"),
        level="high", second=2,
    )  # fmt: skip


def test_an_empty_secret_file_counts_as_unset(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("\n", encoding="utf-8")
    with pytest.raises(errors.BadSettings, match="PASSWORD is not set"):
        config.load(Settings, {"URL": "x", "PASSWORD_FILE": str(tmp_path / "password")})


def test_an_empty_variable_counts_as_unset() -> None:
    assert config.load(Settings, GIVEN | {"PORT": "", "FILE": " "}).port == 3000


def test_a_value_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("from the file\n")
    environment = {"URL": "x", "PASSWORD_FILE": str(tmp_path / "password")}
    assert config.load(Settings, environment).password == "from the file"


def test_all_mistakes_are_reported_together_without_secrets() -> None:
    class Strict(Settings, frozen=True, kw_only=True):
        secret_number: Annotated[int, Variable("SECRET_NUMBER", "a secret number", secret=True)] = 0

    environment = {"PORT": "99999", "ON": "maybe", "ALIASES": "a", "PASSWORD_FILE": "/does/not/exist", "SECRET_NUMBER": "hunter2"}
    with pytest.raises(errors.BadSettings) as told:
        config.load(Strict, environment)
    for name in ("PORT", "URL is not set", "ON", "ALIASES", "PASSWORD_FILE", "SECRET_NUMBER"):
        assert name in told.value.message
    assert "hunter2" not in told.value.message


class Overridden(config.Settings, frozen=True, kw_only=True):
    database: Annotated[str, Variable("DATABASE_URL", "PostgreSQL", secret=True, override="AUTH_DATABASE_URL")]


def test_the_override_variable_wins(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("from the file")
    assert config.load(Overridden, {"DATABASE_URL": "all"}).database == "all"
    assert config.load(Overridden, {"DATABASE_URL": "all", "AUTH_DATABASE_URL": "own"}).database == "own"
    assert config.load(Overridden, {"DATABASE_URL": "all", "AUTH_DATABASE_URL_FILE": str(tmp_path / "url")}).database == "from the file"
    assert config.load(Overridden, {"DATABASE_URL": "all", "AUTH_DATABASE_URL": " "}).database == "all"


def test_both_names_are_reported_if_neither_is_set() -> None:
    with pytest.raises(errors.BadSettings, match="DATABASE_URL or AUTH_DATABASE_URL is not set"):
        config.load(Overridden, {})


def test_a_file_that_is_not_text_is_a_mistake_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes(b"\xff\xfe")
    with pytest.raises(errors.BadSettings, match=r"PASSWORD_FILE: cannot read .*not UTF-8"):
        config.load(Settings, {"URL": "x", "PASSWORD_FILE": str(tmp_path / "password")})


def test_conflicting_values_are_reported_once_every_value_is_valid() -> None:
    class Pair(config.Settings, frozen=True, kw_only=True):
        low: Annotated[int, Variable("LOW", "the lower one")] = 0
        high: Annotated[int, Variable("HIGH", "the higher one")] = 1

        def mistakes(self) -> Iterator[str]:
            if self.high < self.low:
                yield "HIGH must not be below LOW"

    assert config.load(Pair, {"LOW": "1"}).low == 1
    with pytest.raises(errors.BadSettings, match="HIGH must not be below LOW"):
        config.load(Pair, {"LOW": "2"})


class Timed(config.Settings, frozen=True, kw_only=True):
    timeout: Annotated[int, Variable("REQUEST_TIMEOUT", "seconds")] = 60
    port: Annotated[Port, Variable("PORT", "where to listen")] = 3000


@pytest.mark.parametrize(
    ("environment", "seconds", "warnings"),
    [
        pytest.param({"REQUEST_TIMEOUT": "5"}, 5, [], id="its name"),
        pytest.param(
            {"REQUEST_TIMOUT": "5"}, 60, ["REQUEST_TIMOUT is not a setting; did you mean REQUEST_TIMEOUT?"], id="a misspelled name"
        ),
        pytest.param({"PATH": "/bin", "OTEL_REQUEST_TIMEOUT": "1", "TIMEOUT": "5"}, 60, [], id="names of other programs"),
    ],
)
def test_a_misspelled_setting_gets_the_nearest(environment: dict[str, str], seconds: int, warnings: list[str]) -> None:
    assert config.load(Timed, environment).timeout == seconds
    known = {name for setting in config.settings_of(Timed) for name in setting.variable.names}
    assert list(config.find_misspelled_names(known, environment)) == warnings


class Several(config.Settings, frozen=True, kw_only=True):
    key: Annotated[str, msgspec.Meta(min_length=32), Variable("KEY", "required", secret=True)]
    key_old: Annotated[str | None, Variable("KEY_OLD", "the one before", secret=True)] = None
    low: Annotated[int, Variable("LOW", "a number")] = 1
    high: Annotated[int, Variable("HIGH", "a larger one")] = 2

    def mistakes(self) -> Iterator[str]:
        if self.low > self.high:
            yield "LOW: must not be above HIGH"
        if self.key.startswith("A"):
            yield "KEY: may not begin with A"
        if self.key_old == "x":
            yield "KEY_OLD: is too short"


@pytest.mark.parametrize(
    ("environment", "subjects"),
    [
        ({}, []),
        ({"LOW": "3"}, ["LOW"]),
        # Found despite the invalid value, although `load` would report only that value.
        ({"LOW": "3", "HIGH": "x"}, ["HIGH", "LOW"]),
        ({"KEY": "short"}, ["KEY"]),
        ({"KEY_OLD": "x"}, ["KEY_OLD"]),
        ({"KEY_FILE": "/does/not/exist"}, ["KEY_FILE"]),
    ],
)
def test_only_mistakes_of_given_variables_are_found(environment: dict[str, str], subjects: list[str]) -> None:
    checked = config.check_variables(Several, environment)
    assert [mistake.partition(":")[0] for mistake in checked.mistakes] == subjects
    assert checked.names == ("KEY", "KEY_OLD", "LOW", "HIGH")
