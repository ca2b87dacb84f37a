"""Sends all hostile bodies at once and asks /healthz meanwhile: `python -m tests.services.gateway.hostile_client PORT KEY`.

This is another process, so that only the gateway's event loop is measured. It prints the answers' statuses, and the longest time
that /healthz took, as JSON.
"""

import http.client
import json
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from http import HTTPMethod

from tests import stopwatch
from tests.services.gateway.hostile_bodies import BODIES

TIMEOUT_SECONDS = 300.0
_EVERY_SECONDS = 0.01
_LONG_BYTES = 1024 * 1024


def send(port: int, key: str, path: str, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    connection.request(HTTPMethod.POST, path, body, {"authorization": f"Bearer {key}", "content-type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def send_all(port: int, key: str) -> Counter[int]:
    """Send the long bodies one after the other: one tenant may not send all of them at once."""
    long_ones = [sent for sent in BODIES.values() if len(sent[1]) > _LONG_BYTES]
    others = [sent for sent in BODIES.values() if len(sent[1]) <= _LONG_BYTES]
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(len(others)) as all_at_once:
        sending = partial(send, port, key)
        return Counter([*one.map(sending, *zip(*long_ones, strict=True)), *all_at_once.map(sending, *zip(*others, strict=True))])


def main(port: int, key: str) -> None:
    healthz = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    longest = 0.0
    # Its own process: beside so many threads, this one would wait for the interpreter.
    with ProcessPoolExecutor(1) as processes:
        sending = processes.submit(send_all, port, key)
        while not sending.done():
            began = stopwatch.now()
            healthz.request(HTTPMethod.GET, "/healthz")
            healthz.getresponse().read()
            longest = max(longest, stopwatch.now() - began)
            time.sleep(_EVERY_SECONDS)
    print(json.dumps({"statuses": sending.result(), "longest": longest}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
