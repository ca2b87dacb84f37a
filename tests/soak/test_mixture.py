import asyncio
from collections import Counter
from contextlib import suppress

import pytest

from bench.http_load import Answer, Client
from tests.soak import mixture
from tests.soak.mixture import Entrance, Form, Leaving, Tally
from tests.testnet import free_port


def test_every_lap_has_every_form_as_often_as_it_says() -> None:
    for lap in range(3):
        asked = Counter(mixture.form_of(number).name for number in range(lap * mixture.LAP, (lap + 1) * mixture.LAP))
        assert asked == {form.name: form.times for form in mixture.FORMS}


def test_two_runs_ask_the_same_and_two_laps_in_another_order() -> None:
    laps = [[mixture.form_of(number).name for number in range(lap * mixture.LAP, (lap + 1) * mixture.LAP)] for lap in (0, 0, 1)]
    assert laps[0] == laps[1]
    assert laps[0] != laps[2]


STREAM = b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {"a": 1}\n\n'
JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
FORM = mixture.FORMS[0]


@pytest.mark.parametrize(
    ("response", "status", "whole", "wrong"),
    [
        pytest.param(STREAM + b"data: [DONE]\n\n", 200, True, None, id="a whole stream"),
        pytest.param(STREAM, 200, False, "it ended with", id="an incomplete stream"),
        pytest.param(b"", 0, False, "0 b''", id="nothing"),
        pytest.param(STREAM + b'data: {"error": {}}\n\ndata: [DONE]\n\n', 200, True, "it ended with", id="a stream with an error"),
        pytest.param(JSON + b'{"a": {}}', 200, True, None, id="a whole answer"),
        pytest.param(JSON + b'{"a": }', 200, True, "no JSON", id="an answer that is no JSON"),
        pytest.param(JSON + b'{"error": {}}', 500, True, "500 ", id="an error"),
    ],
)
def test_a_response_is_as_it_should_be_or_not(response: bytes, status: int, whole: bool, wrong: str | None) -> None:
    found = mixture.find_wrong(FORM, Answer(0.0, 1.0, 0.5, status, 1, whole=whole), response)
    assert found is None if wrong is None else found is not None and wrong in found


async def _asked(form: Form, answer: bytes, monkeypatch: pytest.MonkeyPatch) -> Tally:
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await reader.read()
            writer.close()
            await writer.wait_closed()
        left.set()

    monkeypatch.setattr(mixture, "form_of", lambda _number: form)
    monkeypatch.setattr(mixture, "ANSWER_SECONDS", 0.5)
    port, tally = free_port(), Tally()
    async with await asyncio.start_server(serve, "127.0.0.1", port):
        await mixture.ask(dict.fromkeys(Entrance, (Client(port), "key")), 1, tally)
        await left.wait()
    return tally


WORD = b'data: {"choices":[{"delta":{"content":"word"}}]}\n\n'


@pytest.mark.parametrize(
    ("leaving", "words", "wrong"),
    [
        pytest.param(Leaving.IN_THE_MIDDLE, mixture.MIDDLE, [], id="left in the middle"),
        pytest.param(Leaving.IN_THE_MIDDLE, 1, ["nothing for 0.5 s"], id="not left, because the middle never came"),
        pytest.param(Leaving.BEFORE_THE_ANSWER, 0, [], id="left before the answer"),
        pytest.param(Leaving.AT_THE_END, mixture.MIDDLE, ["nothing for 0.5 s"], id="the end never came"),
    ],
)
async def test_a_client_leaves_when_it_should(leaving: Leaving, words: int, wrong: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    form = Form("a form", 1, lambda _number: {"a": 1}, leaving=leaving)
    tally = await _asked(form, b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + WORD * words, monkeypatch)
    assert tally.asked == {"a form": 1}
    assert [each.removeprefix("request 1, a form: ") for each in tally.wrong] == wrong
