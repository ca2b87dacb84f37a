"""Printed output: JSON with snake_case names, aligned text, and no control characters for the terminal."""

import json
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest

from cli.output import printing
from cli.output.printing import TableColumn
from shared.api.auth import ApiKey
from shared.limits import BY_NAME
from shared.types import KeyId, UserId

KEY = ApiKey(
    id=KeyId(UUID(int=1)),
    user_id=UserId(UUID(int=2)),
    name="a\x1b[31mb",
    preview="aip_live_abc…wxyz",
    is_active=True,
    created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
)


def test_json_has_every_field_under_its_python_name() -> None:
    assert printing.plain(KEY) == {
        "id": "00000000-0000-0000-0000-000000000001",
        "user_id": "00000000-0000-0000-0000-000000000002",
        "name": "a\x1b[31mb",
        "preview": "aip_live_abc…wxyz",
        "is_active": True,
        "created_at": "2026-01-02T03:04:05Z",
        "last_used_at": None,
        "limits": dict.fromkeys((*BY_NAME, "budget_micro", "budget_every")),
        "kind": "live",
        "bounds": {"scopes": [], "models": [], "networks": []},
        "expires_at": None,
        "team_id": None,
        "made_by": None,
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode 漢字 🙂\n\tx", "plain ünïcode 漢字 🙂\n\tx"),
        ("\x1b]52;c;ZXZpbA==\x07", "]52;c;ZXZpbA=="),
        ("a\rb\x08c\x7fd\x9be", "abcde"),
    ],
)
def test_control_characters_are_dropped(text: str, shown: str) -> None:
    assert printing.printable(text) == shown
    assert printing.plain(msgspec.structs.replace(KEY, logged=False))["logged"] is False  # type: ignore[index,call-overload]


def test_pipe_gets_aligned_text(capsys: pytest.CaptureFixture[str]) -> None:
    columns: list[TableColumn[ApiKey]] = [TableColumn("NAME", lambda key: key.name), TableColumn("ON", lambda key: str(key.is_active))]
    printing.show_rows([KEY], columns, as_json=False, empty="none")
    assert capsys.readouterr().out == "NAME    ON\na[31mb  True\n"


def test_empty_table_prints_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[ApiKey] = []
    printing.show_rows(rows, [], as_json=False, empty="none yet")
    assert capsys.readouterr() == ("", "none yet\n")
    printing.show_rows(rows, [], as_json=True, empty="none yet")
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("number", "message"), [(0, "0 entries"), (1, "1 entry"), (2, "2 entries"), ("1", "1 entry"), ("0.1", "0.1 entries")]
)
def test_plural_forms(number: int | str, message: str) -> None:
    assert printing.counted(number, "entry", "entries") == message


def test_most_plurals_add_an_s() -> None:
    assert (printing.counted(1, "key"), printing.counted(3, "key")) == ("1 key", "3 keys")
