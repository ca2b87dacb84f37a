"""Our YAML output, read back by PyYAML."""

import yaml
from hypothesis import example, given
from hypothesis import strategies as some

from shared import yaml_text

TEXTS = some.text() | some.sampled_from(
    ["", "on", "No", "NULL", "~", "1e3", "12:30", "2026-11-23", "0x1f", ".inf", "a: b", "a #b", "- a", "<<", "=", "a\nb", "\u0085", "x "]
)  # fmt: skip
SCALARS = some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = some.recursive(SCALARS, lambda below: some.lists(below, max_size=4) | some.dictionaries(TEXTS, below, max_size=4), max_leaves=12)


@given(VALUES)
@example(1e-05)
@example([[1, [2]], {"a": [{}, [], {"b": None}]}])
def test_parser_reads_what_was_written(value: object) -> None:
    assert yaml.safe_load(yaml_text.render(value)) == value


def test_it_is_easy_to_read() -> None:
    key = {"name": "laptop", "budget": None, "limits": {"requests_per_hour": 100}, "scopes": ["infer", "read usage"], "none": []}
    assert yaml_text.render([key, {"name": "on"}]) == (
        "- name: laptop\n"
        "  budget: null\n"
        "  limits:\n"
        "    requests_per_hour: 100\n"
        "  scopes:\n"
        "    - infer\n"
        "    - read usage\n"
        "  none: []\n"
        '- name: "on"\n'
    )
