"""An OpenAI-compatible server that answers immediately, as the upstream of measured gateways.

    python -m bench.openai_upstream PORT

It runs as little Python as possible for a request, because both sides of a comparison pay for it. An answer has `max_tokens` words, at most
20; a stream has one event for each, all written together with the head of the response.
"""

import asyncio
import re
import sys
from typing import cast

import uvloop

MODEL = "instant"
MAX_WORDS = 20

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_WORDS = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
_STREAM = re.compile(rb'"stream": ?true')


def _json(body: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


def _answer(words: int, *, stream: bool) -> bytes:
    kind = "chat.completion.chunk" if stream else "chat.completion"
    common = f'{{"id":"chatcmpl-1","object":"{kind}","created":1,"model":"{MODEL}","choices":'
    usage = f'"usage":{{"prompt_tokens":20,"completion_tokens":{words},"total_tokens":{20 + words}}}}}'
    if not stream:
        message = f'{{"role":"assistant","content":"{"tok " * words}"}}'
        return _json(f'{common}[{{"index":0,"message":{message},"finish_reason":"stop"}}],{usage}')
    word = f'{common}[{{"index":0,"delta":{{"content":"tok "}},"finish_reason":null}}]}}'
    end = f'{common}[{{"index":0,"delta":{{}},"finish_reason":"stop"}}]}}'
    events = [f"data: {event}\n\n" for event in (*[word] * words, end, f"{common}[],{usage}", "[DONE]")]
    chunks = "".join(f"{len(event):x}\r\n{event}\r\n" for event in events)
    return f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n".encode()


_MODELS = _json(f'{{"object":"list","data":[{{"id":"{MODEL}","object":"model","created":1,"owned_by":"bench"}}]}}')
_ANSWERS = {stream: [_answer(words, stream=stream) for words in range(MAX_WORDS + 1)] for stream in (False, True)}


def answer_to(head: bytes, body: bytes) -> bytes:
    if head.startswith(b"GET"):
        return _MODELS
    found = _WORDS.search(body)
    words = min(MAX_WORDS, int(found[1])) if found else MAX_WORDS
    return _ANSWERS[_STREAM.search(body) is not None][words]


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._received += data
        while (end := self._received.find(_HEAD_END)) >= 0:
            head, start = self._received[:end], end + len(_HEAD_END)
            length = _LENGTH.search(head)
            whole = start + (int(length[1]) if length else 0)
            if len(self._received) < whole:
                return
            body, self._received = self._received[start:whole], self._received[whole:]
            self._transport.write(answer_to(head, body))


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", port)
    print("{}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
