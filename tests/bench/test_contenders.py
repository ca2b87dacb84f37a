import pytest

from bench.contenders import Answer, EventCounter

LLAMA_SERVER = (
    b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n44\r\ndata: {"choices":[{"delta":{"role":"assistant","content":null}}]}\n\n\r\n'
    b'2f\r\ndata: {"choices":[{"delta":{"content":"Once"}}]}\n\n\r\n2f\r\ndata: {"choices":[{"delta":{"content":" \\n\\""}}]}\n\n\r\n'
    b'40\r\ndata: {"choices":[],"usage":{"completion_tokens":3,"prompt_tokens":51,"total_tokens":54}}\n\n\r\n'
    b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
)
GATEWAY = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\ndata: {"choices":[{"delta":{"content":"Once"}}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":51,"completion_tokens":1,"total_tokens":52}}\n\ndata: [DONE]\n\n'
)
PYTHON_SERVER = (
    b'data: {"choices": [{"delta": {"role": "assistant"}}]}\r\n\r\ndata: {"choices": [{"delta": {"content": "Once"}}]}\r\n\r\n'
    b'data: {"choices": [{"delta": {"content": " upon"}}]}\r\n\r\ndata: {"choices": [{"delta": {}}]}\r\n\r\ndata: [DONE]\r\n\r\n'
)


@pytest.mark.parametrize(
    ("stream", "arrivals", "answer"),
    [
        pytest.param(LLAMA_SERVER, 2, Answer(51, 3), id="llama-server counts itself, also a token without text"),
        pytest.param(GATEWAY, 1, Answer(51, 1), id="an event with a role and no content is no token"),
        pytest.param(PYTHON_SERVER, 2, Answer(0, 2), id="without counts, events with content are tokens"),
    ],
)
def test_a_stream_is_counted_the_same_wherever_it_is_split(stream: bytes, arrivals: int, answer: Answer) -> None:
    for split in range(len(stream) + 1):
        counter = EventCounter()
        assert counter.feed(stream[:split]) + counter.feed(stream[split:]) == arrivals
        assert counter.answer() == answer
