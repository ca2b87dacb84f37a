import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine import wire
from services.inference.engine.sampling import Parameters
from shared import errors
from shared.api.generation import ChatMessage
from shared.types import FinishReason

COMMANDS: list[wire.Command] = [
    wire.Load("/models/a.gguf", 4, None, 2, -1),
    wire.Generate(1, (ChatMessage("user", "hällo"),), Parameters(0.7, 0.95, 40, 2**63 - 1, 5, ("a",))),
    wire.Cancel(1),
]
REPORTS: list[wire.Report] = [
    wire.Loaded("llama 135M", 2048, "", True, "CPU : AVX2 = 1"),
    wire.LoadFailed("no memory"),
    wire.Accepted(1, 12),
    wire.Refused(2, errors.BadRequest("too long", hint="shorten it").to_problem()),
    wire.Step((wire.Progress(1, (5, 6), "ab"), wire.Progress(3, (), "", FinishReason.STOP))),
]


def test_messages_survive_the_socket() -> None:
    unframer = wire.Unframer()
    bodies = list(unframer.feed(b"".join(wire.pack(command) for command in COMMANDS)))
    assert [wire.command_decoder.decode(body) for body in bodies] == COMMANDS


@given(st.lists(st.integers(min_value=0)))
def test_messages_cut_anywhere_are_the_same_messages(borders: list[int]) -> None:
    raw = b"".join(wire.pack(report) for report in REPORTS)
    points = [0, *sorted(border % (len(raw) + 1) for border in borders), len(raw)]
    unframer = wire.Unframer()
    bodies = [body for start, end in itertools.pairwise(points) for body in unframer.feed(raw[start:end])]
    assert [wire.report_decoder.decode(body) for body in bodies] == REPORTS


def test_bytes_one_by_one() -> None:
    unframer = wire.Unframer()
    raw = wire.pack(COMMANDS[1])
    assert [body for byte in raw for body in unframer.feed(bytes([byte]))] == [raw[4:]]


def test_a_message_over_the_limit_is_refused_before_it_is_buffered() -> None:
    with pytest.raises(errors.ProtocolViolation, match="limit"):
        list(wire.Unframer().feed(b"\xff\xff\xff\xff"))
