"""Parsing a file of named queries."""

import re
from pathlib import Path

import pytest

from shared import features
from shared.stores import queries


def test_queries_are_read_by_name() -> None:
    text = (
        "-- All about things.\n\n-- name: find\n-- One.\nSELECT 1;\n\n-- name: add\n-- One more.\n-- Really.\nINSERT INTO t\nVALUES (1);\n"
    )
    found = queries.parse(text, "x.sql")
    assert {name: query.text for name, query in found.items()} == {"find": "SELECT 1", "add": "-- Really.\nINSERT INTO t\nVALUES (1)"}


@pytest.mark.parametrize(
    ("sql", "reads"),
    [
        pytest.param("SELECT 1", True, id="select"),
        pytest.param("-- why\n  select 1", True, id="select after a comment"),
        pytest.param("WITH x AS (DELETE FROM t RETURNING 1) SELECT * FROM x", False, id="with may write"),
        pytest.param("INSERT INTO t SELECT 1", False, id="insert"),
    ],
)
def test_only_a_plain_select_may_be_sent_twice(sql: str, reads: bool) -> None:
    assert queries.parse(f"-- name: q\n-- What.\n{sql}", "x.sql")["q"].only_reads is reads


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("SELECT 1", "before the first", id="no name at all"),
        pytest.param("-- name: q\nSELECT 1", "what it does", id="no comment"),
        pytest.param("-- name: q\n-- What.\n", "empty", id="no SQL"),
        pytest.param("-- name: Q x\n-- What.\nSELECT 1", "before the first", id="a name of two words is no head"),
        pytest.param("-- name: Qx\n-- What.\nSELECT 1", "snake_case", id="not snake_case"),
        pytest.param("-- name: q\n-- A.\nSELECT 1;\n-- name: q\n-- B.\nSELECT 2;", "twice", id="the same name twice"),
    ],
)
def test_bad_files(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        queries.parse(text, "x.sql")


@pytest.mark.parametrize(
    ("sql", "on_replica", "only_sets"),
    [
        pytest.param("-- replica\nSELECT 1", True, False, id="marked"),
        pytest.param("-- More about it.\n-- replica\nWITH x AS (SELECT 1) SELECT * FROM x", True, False, id="below two lines"),
        pytest.param("SELECT 1 -- replica", False, False, id="not a line of its own"),
        pytest.param("-- More.\n-- replica\nSELECT set_config('jit', 'off', true)", True, True, id="a setting"),
    ],
)
def test_a_mark_lets_a_replica_answer(sql: str, on_replica: bool, only_sets: bool) -> None:
    found = queries.parse(f"-- name: q\n-- What.\n{sql};", "x.sql")["q"]
    assert (found.on_replica, found.only_sets) == (on_replica, only_sets)
    assert "-- replica\n" not in found.text


def test_a_write_cannot_be_marked() -> None:
    with pytest.raises(ValueError, match="does not read"):
        queries.parse("-- name: q\n-- What.\n-- replica\nDELETE FROM t", "x.sql")


def test_replicas_answer_reports_and_lists_only() -> None:
    """Never for keys, money, limits, tickets or the verification of the audit log."""
    packages = {name: queries.load_package(SERVICES / name, *features.files(f"{name}.sql")) for name in ("auth", "gateway", "metrics")}
    marked = {f"{service}.{name}": query.text for service, found in packages.items() for name, query in found.items() if query.on_replica}
    assert {name for name, text in marked.items() if re.search(r"\b(INSERT|UPDATE|DELETE|FOR UPDATE|pg_\w+lock)\b", text)} == set()
    tables = {name: set(re.findall(r"\b(?:FROM|JOIN)\s+([a-z_]+)\b(?!\()", text)) & TABLES for name, text in marked.items()}
    assert tables.pop("gateway.sum_refunds") == {"entries"}, "what a report says was refunded; it decides nothing"
    assert tables.pop("gateway.report_days") == {"prices"}, "what a report says that tokens are worth; it decides nothing"
    assert set().union(*tables.values()) == {"request_logs", "feedback", "usage_stats", "snapshots", "layouts"}


SERVICES = Path(__file__).parents[3] / "services"
TABLES = {
    name
    for path in (*SERVICES.glob("*/migrations/*.sql"), *features.FOLDER.glob("*/migrations/*/*.sql"))
    for name in re.findall(r"CREATE TABLE (?:IF NOT EXISTS )?([a-z_]+)", path.read_text(encoding="utf-8"))
}
