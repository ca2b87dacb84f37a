import itertools
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine import engine_messages
from services.inference.engine.engine_messages import KvMode, KvType, KvTypes, SplitMode
from services.inference.engine.sampling import Parameters
from services.inference.images.prompt_images import DecodedImage
from shared import errors
from shared.api.inference import TokenChance, TokenLogprob
from shared.types import FinishReason

PARAMETERS = Parameters(
    temperature=0.7,
    top_p=0.95,
    top_k=40,
    seed=2**63 - 1,
    max_tokens=5,
    stop=("a",),
    min_p=0.05,
    repeat_penalty=1.1,
    frequency_penalty=-2.0,
    presence_penalty=2.0,
    logit_bias=((0, -100.0), (2**31 - 1, 0.5)),
    ignore_eos=True,
    n=4,
    top_logprobs=0,
)
COMMANDS: list[engine_messages.Command] = [
    engine_messages.LoadCommand("/models/a.gguf", 4, 64, 2, -1),
    engine_messages.LoadCommand(
        "/models/a.gguf", 4, 2048, 2, 0, KvMode.EXACT, KvTypes(KvType.Q8_0, KvType.Q4_0), (0.25, 0.75), 1, 7, ("x=CPU",), SplitMode.ROW
    ),
    engine_messages.ShowTokens(("<tool_call>",)),
    engine_messages.StartGeneration(1, engine_messages.PreparedPrompt("hällo"), Parameters(0.0, 1.0, 0, 0)),
    engine_messages.StartGeneration(
        id=2,
        prompt=engine_messages.PreparedPrompt(
            "hällo", 'root ::= "ä"', ("<tool_call>",), "tools", engine_messages.ThoughtBudget(9, "<think>", ("</think>",))
        ),
        parameters=PARAMETERS,
        salt="5a17",
        delivered=(0, 2**31 - 1),
    ),
    engine_messages.AddImage(2, DecodedImage(1, 2, b"\0\1\2\3\4\5")),
    engine_messages.EmbedTexts(3, ("ein Text", (1, 2)), 64),
    engine_messages.ConvertTokens(4, "ä", add_special=False),
    engine_messages.ConvertTokens(6, "", b"\0\1\2\3"),
    engine_messages.CancelGeneration(1),
]
REPORTS: list[engine_messages.Report] = [
    engine_messages.Loading(0.5),
    engine_messages.Loaded("llama 135M", 2048, "", "{{ messages }}", "CPU : AVX2 = 1", bos="<s>", eos="</s>", special=("<s>",)),
    engine_messages.LoadFailed("no memory"),
    engine_messages.GenerationAccepted(1, 12, "ä"),
    engine_messages.GenerationAccepted(1, 300, None, 0.5),
    engine_messages.EncodingImages(),
    engine_messages.GenerationRefused(2, errors.BadRequest("too long", hint="shorten it").to_problem()),
    engine_messages.ConversionResult(3, b"\xff\0"),
    engine_messages.StepReport(
        (
            engine_messages.AnswerProgress(1, (5, 6), "ab"),
            engine_messages.AnswerProgress(3, (), "", FinishReason.STOP, 2, 7),
            engine_messages.AnswerProgress(
                4,
                (9,),
                "",
                logprobs=(TokenLogprob(TokenChance(9, b"\xc3", -0.5), (TokenChance(9, b"\xc3", -0.5), TokenChance(1, b"", -3.25))),),
            ),
        ),
        0.25,
        0.125,
        32,
        128,
    ),
    engine_messages.EmbeddingTurn((engine_messages.ComputedVectors(3, (b"\x00\x00\x80?", b"")),), 0.5),
]


def test_all_messages_are_covered() -> None:
    assert {type(command) for command in COMMANDS} == set(get_args(engine_messages.Command))
    assert {type(report) for report in REPORTS} == set(get_args(engine_messages.Report))


def test_messages_survive_the_socket() -> None:
    unframer = engine_messages.Unframer()
    bodies = list(unframer.feed(b"".join(engine_messages.pack(command) for command in COMMANDS)))
    assert [engine_messages.command_decoder.decode(body) for body in bodies] == COMMANDS


@given(st.lists(st.integers(min_value=0)))
def test_split_messages_are_reassembled(borders: list[int]) -> None:
    raw = b"".join(engine_messages.pack(report) for report in REPORTS)
    points = [0, *sorted(border % (len(raw) + 1) for border in borders), len(raw)]
    unframer = engine_messages.Unframer()
    bodies = [body for start, end in itertools.pairwise(points) for body in unframer.feed(raw[start:end])]
    assert [engine_messages.report_decoder.decode(body) for body in bodies] == REPORTS


def test_messages_are_read_byte_by_byte() -> None:
    unframer = engine_messages.Unframer()
    raw = engine_messages.pack(COMMANDS[3])
    assert [body for byte in raw for body in unframer.feed(bytes([byte]))] == [raw[4:]]


@pytest.mark.parametrize("length", [engine_messages.MAX_MESSAGE_BYTES + 1, 2**32 - 1])
def test_message_over_the_limit_is_refused_before_it_arrives(length: int) -> None:
    with pytest.raises(errors.ProtocolViolation, match="limit"):
        list(engine_messages.Unframer().feed(length.to_bytes(4, "big")))


def test_message_at_the_limit_is_accepted() -> None:
    body = bytes(engine_messages.MAX_MESSAGE_BYTES)
    assert list(engine_messages.Unframer().feed(len(body).to_bytes(4, "big") + body)) == [body]
