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
MOST_WORDS = 20

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_WORDS = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
_STREAM = re.compile(rb'"stream": ?true')
_PROMPT_TOKENS = 20


def _head(content_type: str, rest: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\n{rest}\r\n\r\n".encode()


def _whole(body: str) -> bytes:
    return _head("application/json", f"content-length: {len(body)}") + body.encode()


def _chunk(event: str) -> bytes:
    data = f"data: {event}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


def _usage(words: int) -> str:
    return f'{{"prompt_tokens":{_PROMPT_TOKENS},"completion_tokens":{words},"total_tokens":{_PROMPT_TOKENS + words}}}'


def _plain(words: int) -> bytes:
    choice = f'{{"index":0,"message":{{"role":"assistant","content":"{"tok " * words}"}},"finish_reason":"stop"}}'
    common = f'"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"{MODEL}"'
    return _whole(f'{{{common},"choices":[{choice}],"usage":{_usage(words)}}}')


def _streamed(words: int) -> bytes:
    common = f'"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"{MODEL}"'
    word = _chunk(f'{{{common},"choices":[{{"index":0,"delta":{{"content":"tok "}},"finish_reason":null}}]}}')
    end = _chunk(f'{{{common},"choices":[{{"index":0,"delta":{{}},"finish_reason":"stop"}}]}}')
    usage = _chunk(f'{{{common},"choices":[],"usage":{_usage(words)}}}')
    done = _chunk("[DONE]")
    return _head("text/event-stream", "transfer-encoding: chunked") + word * words + end + usage + done + b"0\r\n\r\n"


_MODELS = _whole(f'{{"object":"list","data":[{{"id":"{MODEL}","object":"model","created":1,"owned_by":"bench"}}]}}')
_PLAIN = [_plain(words) for words in range(MOST_WORDS + 1)]
_STREAMED = [_streamed(words) for words in range(MOST_WORDS + 1)]


def answer_to(head: bytes, body: bytes) -> bytes:
    if head.startswith(b"GET"):
        return _MODELS
    found = _WORDS.search(body)
    words = min(MOST_WORDS, int(found[1])) if found else MOST_WORDS
    return (_STREAMED if _STREAM.search(body) else _PLAIN)[words]


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
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
