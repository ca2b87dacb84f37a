"""/v1/files over HTTP: with OpenAI's own client, ranges, cut connections, and memory for large files."""

import asyncio
import os
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from features.files.gateway.file_routes import read_range
from features.files.gateway.rules.sealed_parts import PART_BYTES
from services.gateway.http_api import http_call
from shared import errors
from shared.stores import objects
from tests.features.files.gateway import file_site
from tests.features.files.gateway.file_site import ADA, KEYS, Site
from tests.services.gateway.http_answers import problem
from tests.testnet import until

LINES = b'{"custom_id": "1"}\n' * 10
LARGE_BYTES = 200 << 20
#: A part that arrives, one that is sealed with its copies, and what the test itself holds.
MAX_MEMORY_BYTES = 8 * PART_BYTES
BOUNDARY = b"xYz"
HEAD = (
    b'--xYz\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
    b'--xYz\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
)
TAIL = b"\r\n--xYz--\r\n"


@pytest.fixture
async def site(plain_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    async with file_site.running(plain_url, objects.open_store(str(tmp_path / "store"), {})) as found:
        yield found


@pytest.fixture
async def client(site: Site) -> AsyncIterator[openai.AsyncOpenAI]:
    async with site.client() as found:
        yield found


async def post(
    http: httpx.AsyncClient, data: bytes = LINES, fields: dict[str, str] | None = None, *, name: str = "a.jsonl"
) -> httpx.Response:
    return await http.post("/v1/files", files={"file": (name, data)}, data={"purpose": "user_data"} | (fields or {}))


async def test_openais_client_uploads_lists_downloads_and_deletes(client: openai.AsyncOpenAI, tmp_path: Path) -> None:
    (tmp_path / "größe.jsonl").write_bytes(LINES)
    made = await client.files.create(file=tmp_path / "größe.jsonl", purpose="batch")
    assert (made.object, made.filename, made.purpose, made.bytes, made.status) == ("file", "größe.jsonl", "batch", len(LINES), "processed")
    assert made.id.startswith("file-")
    assert made.expires_at == made.created_at + 30 * 24 * 3600
    short = await client.files.create(file=("b.txt", b"b"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600})
    assert short.expires_at == short.created_at + 3600
    assert (await client.files.retrieve(made.id)) == made
    assert (await client.files.content(made.id)).content == LINES
    assert [file.id async for file in client.files.list()] == [short.id, made.id]
    assert [file.id async for file in client.files.list(limit=1, order="asc")] == [made.id, short.id]
    assert [file.id async for file in client.files.list(purpose="batch")] == [made.id]
    deleted = await client.files.delete(made.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "file")
    for gone in (client.files.retrieve(made.id), client.files.content(made.id), client.files.delete(made.id)):
        with pytest.raises(openai.NotFoundError):
            await gone
    for purpose in ("assistants", "fine-tune", "vision", "evals"):
        other: Any = purpose
        assert (await client.files.create(file=b"x", purpose=other)).expires_at is None
    with pytest.raises(openai.NotFoundError, match="uploads in parts") as refused:
        await client.uploads.create(bytes=5, filename="a", mime_type="text/plain", purpose="batch")
    assert "/v1/files" in str(refused.value)


async def test_forms_that_are_wrong_are_refused_with_the_part(site: Site) -> None:
    site.most_bytes = 1000
    async with site.http() as http:
        assert (await post(http)).status_code == 200
        cases = (
            ({"purpose": "batch_output"}, "purpose"),
            ({"purpose": ""}, "purpose"),
            ({"expires_after[anchor]": "now"}, "expires_after[anchor]"),
            ({"expires_after[seconds]": "3599"}, "expires_after[seconds]"),
            ({"expires_after[seconds]": "9" * 30}, "expires_after[seconds]"),
            ({"expires_after[seconds]": "-1"}, "expires_after[seconds]"),
            ({"extra": "x"}, "extra"),
        )
        for fields, part in cases:
            assert problem(await post(http, fields=fields), 400, "bad_request")["param"] == part
        assert problem(await post(http, name="../a"), 400, "bad_request")["param"] == "file"
        two = [("file", ("a", b"1")), ("file", ("b", b"2"))]
        assert problem(await http.post("/v1/files", files=two), 400, "bad_request")["param"] == "file"
        assert problem(await http.post("/v1/files", data={"purpose": "batch"}), 400, "bad_request")["param"] == "Content-Type"
        cut = await http.post("/v1/files", content=HEAD + b"x", headers={"content-type": "multipart/form-data; boundary=xYz"})
        assert problem(cut, 400, "bad_request")["param"] == "file"
        compressed = await http.post("/v1/files", content=b"x", headers={"content-encoding": "gzip"})
        problem(compressed, 400, "bad_request")
        full = problem(await post(http, b"x" * 900), 403, "not_allowed")
        assert f"({len(LINES)} bytes)" in full["message"]
        assert "the limit of 1000 bytes" in full["message"]
        headers = {"content-type": "multipart/form-data; boundary=xYz", "content-length": str(1 << 30)}
        problem(await http.post("/v1/files", content=b"x", headers=headers), 413, "too_large")
        for path in ("/v1/uploads", "/v1/uploads/upload_1/parts"):
            assert "POST /v1/files" in problem(await http.post(path), 404, "not_found")["message"]
        for query in ("limit=0", "limit=10001", "order=up", "after=x", "purpose=x"):
            problem(await http.get(f"/v1/files?{query}"), 400, "bad_request")
    assert await site.count("files") == 1
    async with site.http("eve") as http:
        assert (await http.get("/v1/files")).json() == {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}


async def test_ranges(site: Site) -> None:
    async with site.http() as http:
        content = f"/v1/files/{(await post(http, b'0123456789')).json()['id']}/content"
        for asked, found in (("0-0", b"0"), ("3-", b"3456789"), ("-3", b"789"), ("8-99", b"89"), ("-99", b"0123456789")):
            answer = await http.get(content, headers={"range": f"bytes={asked}"})
            assert (answer.status_code, answer.content) == (206, found)
            first = 10 - len(found) if asked != "0-0" else 0
            assert answer.headers["content-range"] == f"bytes {first}-{first + len(found) - 1}/10"
        for ignored in ("bytes=5-4", "bytes=0-1,4-5", "bytes=-", "lines=0-1", "bytes=a-b"):
            answer = await http.get(content, headers={"range": ignored})
            assert (answer.status_code, answer.content) == (200, b"0123456789")
            assert answer.headers["accept-ranges"] == "bytes"
            assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''a.jsonl"
        for beyond in ("bytes=10-", "bytes=99-100", "bytes=-0"):
            problem(await http.get(content, headers={"range": beyond}), 416, "range_not_satisfiable")
        empty = f"/v1/files/{(await post(http, b'')).json()['id']}/content"
        assert (await http.get(empty)).content == b""
    with pytest.raises(errors.RangeNotSatisfiable):
        read_range(b"bytes=0-", 0)


async def test_another_tenants_file_does_not_exist(site: Site) -> None:
    async with site.http() as http, site.http("eve") as stranger:
        file = f"/v1/files/{(await post(http)).json()['id']}"
        for answer in (await stranger.get(file), await stranger.get(f"{file}/content"), await stranger.delete(file)):
            problem(answer, 404, "not_found")
        problem(await stranger.get("/v1/files/..%2f..%2fetc/content"), 404, "not_found")
        assert (await http.get(file)).status_code == 200


async def upload(port: int, size: int, *, stop_at: int | None = None) -> bytes:
    """Send a file of zeros and ones, whole or until a byte, and return the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    block = os.urandom(1 << 20)
    head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEYS['ada']}\r\nconnection: close\r\n"
    head += f"content-type: multipart/form-data; boundary=xYz\r\ncontent-length: {len(HEAD) + size + len(TAIL)}\r\n\r\n"
    writer.write(head.encode() + HEAD)
    for _ in range((stop_at or size) // len(block)):
        writer.write(block)
        await writer.drain()
    if stop_at is None:
        writer.write(TAIL)
    else:
        writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def test_memory_stays_bounded_while_200_mb_go_up_and_down(site: Site) -> None:
    async with site.listening() as port:
        await upload(port, 1 << 20)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            answer = await upload(port, LARGE_BYTES)
            _, peak_up = tracemalloc.get_traced_memory()
            file = answer.partition(b'"id":"')[2][:31].decode()
            tracemalloc.reset_peak()
            received = 0
            url, headers = f"http://127.0.0.1:{port}/v1/files/{file}/content", {"authorization": f"Bearer {KEYS['ada']}"}
            async with httpx.AsyncClient(timeout=60) as http, http.stream("GET", url, headers=headers) as download:
                assert download.headers["content-length"] == str(LARGE_BYTES)
                async for piece in download.aiter_raw():
                    received += len(piece)
            _, peak_down = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    print(f"peaks: {(peak_up - before) / 2**20:.1f} MiB up, {(peak_down - before) / 2**20:.1f} MiB down")
    assert received == LARGE_BYTES
    assert max(peak_up, peak_down) - before <= MAX_MEMORY_BYTES
    assert site.memory.held_bytes == 0


async def test_a_client_that_disconnects_leaves_nothing(site: Site, tmp_path: Path) -> None:
    async with site.listening() as port:
        assert await upload(port, 50 << 20, stop_at=20 << 20) == b""
        await until(lambda: site.memory.held_bytes == 0)
        assert [path for path in (tmp_path / "store" / "files").rglob("*") if path.is_file()] == []
        assert await site.count("files") == 0
        # A reader that leaves in the middle ends the download.
        made = await site.store(os.urandom(6 * PART_BYTES))
        url, headers = f"http://127.0.0.1:{port}/v1/files/{made.id}/content", {"authorization": f"Bearer {KEYS['ada']}"}
        async with httpx.AsyncClient() as http, http.stream("GET", url, headers=headers) as download:
            async for _ in download.aiter_raw():
                break
        await until(lambda: site.memory.held_bytes == 0)


async def test_a_sender_that_pauses_is_refused_and_holds_no_memory(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_call, "BODY_SECONDS", 0.02)
    async with site.listening() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEYS['ada']}\r\n"
        head += "content-type: multipart/form-data; boundary=xYz\r\ncontent-length: 1000000\r\n\r\n"
        writer.write(head.encode() + HEAD + b"12345")
        assert (await reader.readline()).startswith(b"HTTP/1.1 400")
        writer.close()
        assert site.memory.held_bytes == 0
        assert await site.count("files") == 0


async def test_a_damaged_part_cuts_the_answer_or_is_an_error(site: Site, tmp_path: Path) -> None:
    made = await site.store(os.urandom(2 * PART_BYTES))
    file = await site.rows.find(ADA.tenant_id, made.id)
    (tmp_path / "store" / "files" / str(file.id) / "1").write_bytes(b"x")
    async with site.listening() as port, httpx.AsyncClient() as http:
        url, headers = f"http://127.0.0.1:{port}/v1/files/{made.id}/content", {"authorization": f"Bearer {KEYS['ada']}"}
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(url, headers=headers)
        answer = await http.get(url, headers=headers | {"range": f"bytes={PART_BYTES}-"})
        problem(answer, 503, "file_damaged")
        assert (await http.get(url, headers=headers | {"range": "bytes=0-9"})).status_code == 206
