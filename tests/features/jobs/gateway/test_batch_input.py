"""What a batch's input file may contain, wherever it is cut."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.jobs.contract import LineError
from features.jobs.gateway.rules import batch_input
from features.jobs.gateway.rules.batch_input import BatchInput, NewLine
from services.gateway.facts.body_values import MAX_NESTED

CHAT = "/v1/chat/completions"


def line(custom_id: object = "a", **more: Any) -> dict[str, Any]:
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body} | more


def text(*lines: object) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


def read(data: bytes, *, endpoint: str = CHAT, size: int = 1 << 16) -> tuple[list[NewLine], BatchInput]:
    found = BatchInput(endpoint)
    lines = [each for at in range(0, len(data), size) for each in found.read(data[at : at + size])]
    return lines + list(found.end()), found


def codes(data: bytes, **more: Any) -> list[tuple[str, int | None, str | None]]:
    return [(error.code, error.line, error.param) for error in read(data, **more)[1].errors]


GOOD = b"\xef\xbb\xbf" + text(line("a")) + b"\r\n\n" + text(line("b")).replace(b"\n", b"\r\n") + b"  \n" + text(line("ü"))[:-1]


@given(st.integers(1, 60))
def test_lines_are_found_wherever_the_file_is_cut(size: int) -> None:
    lines, found = read(GOOD, size=size)
    assert [(each.line, each.custom_id) for each in lines] == [(0, "a"), (1, "b"), (2, "ü")]
    assert [json.loads(GOOD[each.start : each.start + each.size])["custom_id"] for each in lines] == ["a", "b", "ü"]
    assert (found.errors, found.total, found.model) == ([], 3, "smollm2")


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (b"{", ("invalid_json_line", 2, None)),
        (b"[1]", ("invalid_json_line", 2, None)),
        (b"[" * 100_000, ("invalid_json_line", 2, None)),
        (b'{"custom_id": "\xff"}', ("invalid_encoding", 2, None)),
        (line(None), ("missing_required_parameter", 2, "custom_id")),
        (line(""), ("missing_required_parameter", 2, "custom_id")),
        (line("\0"), ("missing_required_parameter", 2, "custom_id")),
        (b'{"custom_id": "\\ud800"}', ("invalid_json_line", 2, None)),
        (line("x" * 513), ("missing_required_parameter", 2, "custom_id")),
        (line("b", method="GET"), ("invalid_method", 2, "method")),
        (line("b", url="/v1/embeddings"), ("invalid_url", 2, "url")),
        (line("b", body=None), ("missing_required_parameter", 2, "body")),
        (line("b", body={}), ("missing_required_parameter", 2, "body.model")),
        (line("b", body={"model": "x" * 201}), ("missing_required_parameter", 2, "body.model")),
        (line("b", body={"model": "a\0"}), ("missing_required_parameter", 2, "body.model")),
        (line("b", body={"model": "other"}), ("mismatched_model", 2, "body.model")),
        (line("b", body={"model": "smollm2", "stream": True}), ("streaming_not_supported", 2, "body.stream")),
        (line("a"), ("duplicate_custom_id", 2, "custom_id")),
        (b"x" * (batch_input.MAX_LINE_BYTES + 1), ("line_too_large", 2, None)),
        (line("b", body={"model": "smollm2", "messages": [[]] * MAX_NESTED}), ("too_many_values", 2, "body")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("size", [1 << 12, 1 << 22])
def test_a_malformed_line_is_named(bad: Any, error: tuple[str, int, str | None], size: int) -> None:
    data = text(line("a")) + (bad + b"\n" if isinstance(bad, bytes) else text(bad)) + text(line("c"))
    lines, found = read(data, size=size)
    assert [(each.code, each.line, each.param) for each in found.errors] == [error]
    assert [each.custom_id for each in lines] == ["a", "c"]


def test_a_duplicate_names_both_lines() -> None:
    _, found = read(text(line("a"), line("b"), line("a")))
    assert found.errors == [LineError("duplicate_custom_id", "lines 1 and 3 have the same custom_id", 3, "custom_id")]


def test_an_empty_or_binary_file_is_refused() -> None:
    assert codes(b"") == [("empty_file", None, None)]
    assert codes(b"\n" * 10) == [("empty_file", None, None)]
    assert {code for code, _, _ in codes(bytes(range(256)) * 20)} <= {"invalid_encoding", "invalid_json_line"}


def test_only_so_many_lines_inputs_and_errors_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_input, "MAX_LINES", 3)
    assert codes(text(*(line(str(number)) for number in range(9)))) == [("too_many_lines", 4, None)]
    many = line("a", url="/v1/embeddings", body={"model": "m", "input": ["x"] * 4})
    assert codes(text(many), endpoint="/v1/embeddings") == [("too_many_lines", 1, None)]
    assert len(codes(b"{\n" * 1000)) == batch_input.MAX_ERRORS


def test_neither_long_lines_nor_many_blank_ones_take_memory() -> None:
    found, piece = BatchInput(CHAT), bytes(1 << 20)
    tracemalloc.start()
    for _ in range(64):
        assert list(found.read(piece)) == []
    list(found.read(b"\n" * 1_000_000))
    list(found.read(text(line("a"))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    assert ([error.code for error in found.errors], found.total) == (["line_too_large"], 1)


@pytest.mark.parametrize("field", ["messages", "tools", "unknown"])
@pytest.mark.parametrize("value", [[], [[]]], ids=json.dumps)
def test_the_values_of_a_long_line_are_not_made(field: str, value: object) -> None:
    """With their objects, a line held the interpreter's lock for up to 0.4 s."""
    count = 100_000 // len(json.dumps(value))
    data = text(line("a", body={"model": "m", field: [value] * count}))
    reading = BatchInput(CHAT).read(data)
    tracemalloc.start()
    assert [each.custom_id for each in reading] == ["a"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(data)


def test_lines_that_begin_alike_have_the_same_prefix() -> None:
    system = {"role": "system", "content": "be brief"}

    def prefix(*messages: object, **more: Any) -> bytes:
        body = {"model": "m", "messages": list(messages)} | more
        return batch_input.prefix_of(batch_input.read_body(json.dumps(body).encode()))

    assert prefix(system, {"role": "user", "content": "a"}) == prefix(system, {"role": "user", "content": "b"})
    others = [prefix(), prefix(system), prefix(system, tools=[1]), prefix(system, model="n"), prefix(system | {"content": "be long"})]
    assert len(set(others)) == len(others)
