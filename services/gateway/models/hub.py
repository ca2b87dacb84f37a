"""Asks the Hugging Face hub, and Ollama's registry, about models: what it finds for words, and the files behind a source."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import httpx
import msgspec

from services.gateway.models import catalog
from shared import errors, model_reference
from shared.api.inference import MAX_HEADER_BYTES, ModelSources
from shared.api.model_search import FoundModel
from shared.config_documents import CatalogDocument
from shared.model_reference import RemoteFile

#: For each question, with its redirects.
SECONDS = 4.0
#: The largest repositories' list of files has 2 MB.
MAX_ANSWER_BYTES = 4 * 2**20
#: Questions at once.
MAX_AT_ONCE = 8
#: Sources that no caller can point at a server of their own.
_KNOWN_SERVERS = ("hf:", "ollama:")
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,99}/[A-Za-z0-9][\w.-]{0,99}", re.ASCII)

T = TypeVar("T")


class _Gguf(msgspec.Struct, frozen=True):
    #: Parameters.
    total: int = 0
    context_length: int = 0


class _Repository(msgspec.Struct, frozen=True):
    """A repository of GGUF files."""

    id: str = ""
    downloads: int = 0
    tags: tuple[str, ...] = ()
    gguf: _Gguf = _Gguf()

    @property
    def license(self) -> str:
        return next((tag[8:100] for tag in self.tags if tag.startswith("license:")), "")


class Hub:
    """Its methods raise Unavailable if the server doesn't answer in time, and PeerError for an unusable answer."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._sources = ModelSources(hub_url=url)
        self._places = asyncio.Semaphore(MAX_AT_ONCE)

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str) -> AsyncIterator["Hub"]:
        # With the proxies of the environment, as `aicli models pull`.
        async with httpx.AsyncClient(timeout=SECONDS, follow_redirects=True, max_redirects=5) as client:
            yield cls(client, url)

    async def search(self, text: str, limit: int) -> list[FoundModel]:
        query = {"search": text, "filter": "gguf", "limit": limit, "sort": "downloads", "expand[]": ["downloads", "tags", "gguf"]}
        url = httpx.URL(f"{self._sources.hub_url.rstrip('/')}/api/models", params=query)
        listed = _decode(await self._get(str(url), {}), list[_Repository])
        return [_found(one) for one in listed[:limit] if _ID.fullmatch(one.id) and 0 < one.gguf.total < 10**13]

    async def look_up(self, source: str, known: CatalogDocument | None = None) -> tuple[CatalogDocument, RemoteFile]:
        """Return what the hub says about a model, beside what is known, and its file. Raises BadRequest and NotFound, too."""
        if not source.startswith(_KNOWN_SERVERS):
            raise errors.Unavailable("only files of hf: and ollama: can be looked up before the download")
        planned = model_reference.plan(source, None, self._sources)
        assert isinstance(planned, model_reference.Listing)
        body = await self._get(planned.document.url, planned.document.headers)
        files, gguf = planned.choose(body, planned.document.headers).files, _decode(body, _Repository).gguf
        size = sum(file.size or 0 for file in files)
        if not size:
            raise errors.PeerError("the hub lists no sizes")
        context = min(max(0, gguf.context_length), 10**9)
        base = known or catalog.document(source, parameters=min(max(0, gguf.total), 10**13), size=size)
        digest = files[0].sha256 if len(files) == 1 else None
        return msgspec.structs.replace(base, size=size, sha256=digest, context=context or base.context), files[0]

    async def read_header(self, file: RemoteFile) -> bytes:
        """Return the beginning of a file."""
        headers = {**file.headers, "Range": f"bytes=0-{MAX_HEADER_BYTES - 1}"}
        return await self._get(file.url, headers, most=MAX_HEADER_BYTES)

    async def _get(self, url: str, headers: Mapping[str, str], *, most: int = MAX_ANSWER_BYTES) -> bytes:
        """Read the first ``most`` bytes of an answer. A list that is cut there is not JSON."""
        host, body = httpx.URL(url).host, bytearray()
        try:
            async with self._places, asyncio.timeout(SECONDS), self._client.stream("GET", url, headers=dict(headers)) as response:
                if response.status_code in (401, 403, 404):
                    raise errors.NotFound(f"{host} has no such model for everyone", hint="check the name; pull a model that needs a token")
                response.raise_for_status()
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > most:
                        break
        # AttributeError: see HttpTransport, which would use no proxy.
        except (httpx.HTTPError, TimeoutError, OSError, AttributeError) as error:
            raise errors.Unavailable(f"{host} does not answer") from error
        return bytes(body[:most])


def _found(repository: _Repository) -> FoundModel:
    source, gguf = f"hf:{repository.id}", repository.gguf
    context = min(max(0, gguf.context_length), 10**9)
    model = catalog.document(source, parameters=gguf.total, license_id=repository.license, context=context)
    return msgspec.structs.replace(catalog.found(source, model), origin="hub", downloads=repository.downloads)


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.PeerError("the hub's answer is not what was expected") from error
