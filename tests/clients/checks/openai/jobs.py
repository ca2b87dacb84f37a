"""Batches, responses in the background, and webhooks."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
from checklist import error_of, script
from openai.types import batch_create_params
from openai.types.webhooks import webhook_create_params, webhook_update_params

from checks.openai.client import SCRIPTED, checks, client, has_no_effect, works

#: Lines and responses in the background wait for an idle machine.
END_SECONDS = 60
CHATS = "/v1/chat/completions"


def until(read: Callable[[], Any], is_it: Callable[[Any], bool]) -> Any:
    ends_at = time.monotonic() + END_SECONDS
    while not is_it(found := read()):
        assert time.monotonic() < ends_at, found
        time.sleep(0.05)
    return found


# --- batches --------------------------------------------------------------------------------------------------------------------


def order(*says: str, **fields: Any) -> Any:
    """Begin a batch whose answers say this; without a text, the line is refused."""
    lines = [
        {"custom_id": f"line {number}", "method": "POST", "url": CHATS, "body": {
            "model": SCRIPTED, "messages": [{"role": "user", "content": script(say=say)}] if say else []}}
        for number, say in enumerate(says)
    ]  # fmt: skip
    file = client.files.create(file=("lines.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    create = client.batches.with_raw_response.create
    return works(create, **{"input_file_id": file.id, "endpoint": CHATS, "completion_window": "24h", **fields})


def ended(batch: Any) -> Any:
    return until(partial(client.batches.retrieve, batch.id), lambda found: found.status in {"completed", "failed", "expired", "cancelled"})


def lines_of(file: str | None) -> list[Any]:
    assert file is not None
    return [json.loads(line) for line in client.files.content(file).text.splitlines()]


@checks("batches.create()", "batches.retrieve()", "batches.input_file_id", "batches.endpoint", "batches.completion_window")
def _() -> None:
    made = order("One.", "Two.", "")
    assert (made.object, made.status in {"validating", "in_progress"}, made.endpoint) == ("batch", True, CHATS)
    batch = ended(made)
    assert (batch.status, batch.model) == ("completed", SCRIPTED)
    counts, usage = batch.request_counts, batch.usage
    assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens > 0
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at < batch.expires_at
    said = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines_of(batch.output_file_id)}
    assert said == {"line 0": "One.", "line 1": "Two."}
    (refused,) = lines_of(batch.error_file_id)
    assert (refused["custom_id"], refused["response"]["status_code"]) == ("line 2", 400)
    assert refused["response"]["body"]["error"]["param"] == "messages"


@checks("batches.metadata", "batches.list()")
def _() -> None:
    first, second = (order("Hi.", metadata={"number": str(number)}) for number in range(2))
    listed = iter(client.batches.list(limit=1))
    assert [next(listed).id for _ in range(2)] == [second.id, first.id]
    assert ended(second).metadata == {"number": "1"}


@checks("batches.output_expires_after")
def _() -> None:
    create = partial(client.batches.with_raw_response.create, input_file_id=order("Hi.").input_file_id, endpoint=CHATS)
    fields = {"completion_window": "24h", "output_expires_after": {"anchor": "created_at", "seconds": 3600}}
    has_no_effect(create, "output_expires_after", **fields)


@checks("batches.cancel()")
def _() -> None:
    made = order(*["Hi."] * 500)
    # While it is validated, it has no lines.
    until(partial(client.batches.retrieve, made.id), lambda found: found.status == "in_progress")
    assert client.batches.cancel(made.id).status in {"cancelling", "finalizing", "cancelled"}
    batch = ended(made)
    assert batch.status == "cancelled"
    assert {line["error"]["code"] for line in lines_of(batch.error_file_id)} == {"batch_cancelled"}


@checks("batches.create() refused")
def _() -> None:
    file = client.files.create(file=("lines.jsonl", b'{"custom_id": "1"}\nnot JSON'), purpose="batch")
    batch = ended(client.batches.create(input_file_id=file.id, endpoint=CHATS, completion_window="24h"))
    assert batch.status == "failed"
    assert [(each.line, each.code) for each in batch.errors.data] == [(1, "invalid_method"), (2, "invalid_json_line")]
    assert error_of(openai.NotFoundError, partial(client.batches.retrieve, "batch_" + 26 * "a")).code == "not_found"


checks.ensure_named("batches", batch_create_params.BatchCreateParams.__annotations__)

# --- responses in the background -------------------------------------------------------------------------------------------------


def in_background(say: str) -> Any:
    fields = {"model": SCRIPTED, "input": script(say=say), "background": True}
    return works(client.responses.with_raw_response.create, **fields)


@checks("responses.background", "responses.retrieve()", "responses.delete()")
def _() -> None:
    made = in_background("At last.")
    assert (made.status in {"queued", "in_progress"}, made.background, made.output) == (True, True, [])
    response = until(partial(client.responses.retrieve, made.id), lambda found: found.status not in {"queued", "in_progress"})
    assert (response.id, response.status, response.output_text) == (made.id, "completed", "At last.")
    client.responses.delete(made.id)
    assert error_of(openai.NotFoundError, partial(client.responses.retrieve, made.id)).code == "not_found"


@checks("responses.cancel()")
def _() -> None:
    made = in_background("Too late.")
    cancelled = until(partial(client.responses.cancel, made.id), lambda found: found.status not in {"queued", "in_progress"})
    # It may have ended before.
    assert cancelled.status in {"cancelled", "completed"}


# --- webhooks -------------------------------------------------------------------------------------------------------------------


@contextmanager
def receiving() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """Yield the address of a server, and what it gets."""
    got: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((dict(self.headers.items()), self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@checks("webhooks.unwrap()", "webhooks.create()", "webhooks.url", "webhooks.name", "webhooks.event_types", "webhooks.delete()")
def _() -> None:
    with receiving() as (url, got):
        made = client.webhooks.create(name="batches", url=url, event_types=["batch.completed", "response.completed"])
        batch = order("Hi.")
        response = in_background("Hi.")
        until(lambda: got, lambda found: len(found) == 2)
        events = [client.webhooks.unwrap(body, headers, secret=made.signing_secret) for headers, body in got]
        assert {(event.type, event.data.id) for event in events} == {("batch.completed", batch.id), ("response.completed", response.id)}
        headers, body = got[0]
        error_of(openai.InvalidWebhookSignatureError, partial(client.webhooks.unwrap, body + b" ", headers, secret=made.signing_secret))
        assert client.webhooks.delete(made.id).deleted


@checks("webhooks.retrieve()", "webhooks.list()", "webhooks.update()", "webhooks.rotate_secret()", "webhooks.test()")
def _() -> None:
    with receiving() as (url, got):
        made = client.webhooks.create(name="first", url=url, event_types=["batch.completed"])
        client.webhooks.update(made.id, name="second", url=url, event_types=["batch.failed"])
        found = client.webhooks.retrieve(made.id)
        assert (found.name, found.event_types) == ("second", ["batch.failed"])
        assert made.id in {each.id for each in client.webhooks.list()}
        rotated = client.webhooks.rotate_secret(made.id)
        assert rotated.signing_secret != made.signing_secret
        client.webhooks.test(made.id, event_type="batch.failed")
        headers, body = until(lambda: got, bool)[0]
        assert client.webhooks.unwrap(body, headers, secret=rotated.signing_secret).type
        client.webhooks.delete(made.id)


@checks("webhooks.event_types.list()")
def _() -> None:
    assert "batch.completed" in client.webhooks.event_types.list().data


checks.ensure_named("webhooks", webhook_create_params.WebhookCreateParams.__annotations__)
checks.ensure_named("webhooks", webhook_update_params.WebhookUpdateParams.__annotations__)
