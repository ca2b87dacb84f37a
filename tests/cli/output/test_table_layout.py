"""Tables in narrow and wide terminals: what is hidden, what wraps, and what is never cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.output import table_layout
from cli.output.table_layout import LayoutColumn, display_width, lay_out, wrap

ID = "0b41e0f6-4d1c-4f3c-9c6c-2f1f7c8f3a55"
ALERT = [
    LayoutColumn("ID", ["a1b2c3d4e5f6"]),
    LayoutColumn("ALERT", ["certificate_expiring"]),
    LayoutColumn("SEVERITY", ["warning"]),
    LayoutColumn("STATE", ["firing"], rank=3),
    LayoutColumn("SINCE", ["5 min"], rank=2),
    LayoutColumn("SUMMARY", ["The certificate of the gateway UABCDEFGH expires in 3 days"], wraps=True, below=True),
    LayoutColumn("LABELS", ["node=UABCDEFGH, zone=eu"], rank=4, wraps=True),
    LayoutColumn("RUNBOOK", ["docs/runbooks/certificate_expiring.md"], rank=5),
]


def test_an_alert_takes_two_lines_at_80_columns() -> None:
    found = lay_out(ALERT, 80)
    assert list(found.lines) == [
        "ID            ALERT                 SEVERITY  STATE   SINCE",
        "a1b2c3d4e5f6  certificate_expiring  warning   firing  5 min",
        "  The certificate of the gateway UABCDEFGH expires in 3 days",
    ]
    assert found.hidden == ("RUNBOOK", "LABELS")


def test_a_wide_terminal_shows_everything_in_one_line() -> None:
    found = lay_out(ALERT, 200)
    assert (len(found.lines), found.hidden) == (2, ())
    assert found == lay_out(ALERT, None), "as a pipe does"
    assert "docs/runbooks/certificate_expiring.md" in found.lines[1]


def test_at_40_columns_ids_and_names_stay_whole() -> None:
    found = lay_out(ALERT, 40)
    assert found.lines[1] == "a1b2c3d4e5f6  certificate_expiring  warning"
    assert found.lines[2:] == ("  The certificate of the gateway", "  UABCDEFGH expires in 3 days")
    assert found.hidden == ("RUNBOOK", "LABELS", "STATE", "SINCE")
    assert lay_out([LayoutColumn("ID", [ID]), LayoutColumn("NAME", ["x"], rank=2)], 20).lines == ("ID", ID)


def test_empty_columns_are_hidden_first() -> None:
    columns = [LayoutColumn("A", ["a" * 30]), LayoutColumn("B", ["–"], rank=2), LayoutColumn("C", ["c" * 30], rank=9)]
    assert lay_out(columns, 63).hidden == ("B",)
    assert lay_out(columns, 61).hidden == ("B", "C")


def test_prose_shares_what_the_others_leave() -> None:
    words = "one two three four five six seven eight nine ten"
    found = lay_out([LayoutColumn("ID", ["x"]), LayoutColumn("WHY", [words], wraps=True), LayoutColumn("ON", ["yes"], wraps=True)], 40)
    assert list(found.lines) == [
        "ID  WHY                              ON",
        "x   one two three four five six      yes",
        "    seven eight nine ten",
    ]


def test_wide_characters_take_two_cells() -> None:
    found = lay_out([LayoutColumn("NAME", ["漢字", "e\u0301a", "ab"]), LayoutColumn("ON", ["yes", "no", "no"])], 40)
    assert list(found.lines) == ["NAME  ON", "漢字  yes", "e\u0301a    no", "ab    no"]


@pytest.mark.parametrize(
    ("text", "width"), [("abc", 3), ("漢字", 4), ("e\u0301", 1), ("🙂", 2), ("a\u200bb", 2), ("ｱ", 1), ("Ａ", 2), ("", 0)]
)
def test_display_width(text: str, width: int) -> None:
    assert display_width(text) == width


def test_only_words_longer_than_a_line_are_broken() -> None:
    assert wrap("a bb ccccccc dd", 4) == ["a bb", "cccc", "ccc", "dd"]
    assert wrap("漢字漢字漢", 4) == ["漢字", "漢字", "漢"]
    assert wrap("", 4) == [""]


def test_painting_does_not_move_columns() -> None:
    columns = [LayoutColumn("A", ["x", "long"]), LayoutColumn("B", ["y", "z"])]
    assert lay_out(columns, 80, lambda text, row, column: f"<{row},{column}:{text}>").lines == (
        "<-1,0:A>     <-1,1:B>",
        "<0,0:x>     <0,1:y>",
        "<1,0:long>  <1,1:z>",
    )


_TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=40)


@given(
    st.lists(st.tuples(_TEXTS, st.integers(1, 4), st.booleans(), st.booleans()), min_size=1, max_size=6),
    st.integers(20, 120),
)
def test_no_line_is_longer_than_needed(cells: list[tuple[str, int, bool, bool]], width: int) -> None:
    columns = [LayoutColumn(f"C{n}", [text], rank, wraps, below) for n, (text, rank, wraps, below) in enumerate(cells)]
    found = lay_out(columns, width)
    kept = [column for column in columns if column.title not in found.hidden]
    whole = [column for column in kept if column.rank == 1 and not column.below]
    least = sum(column.least for column in whole) + table_layout.GAP * max(0, len(whole) - 1)
    assert all(display_width(line) <= max(width, least) for line in found.lines)
    text = "\n".join(found.lines)
    assert all(column.cells[0].strip() in text for column in kept if not column.wraps and not column.below)
    assert all(column.rank > 1 for column in columns if column.title in found.hidden)
