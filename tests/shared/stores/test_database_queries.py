"""How a file of named queries is read."""

import pytest

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
