"""Downloads a file over HTTP, or copies it, into a partial file, which a later call resumes, and hashes it on the way.

It blocks and runs in a separate program (`store_program`), with Python's urllib: httpx takes three times as long for large files.
"""

import hashlib
import http.client
import os
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from shared import addresses, errors, model_reference
from shared.identity import private_file
from shared.model_reference import RemoteFile
from shared.timing.backoff import Backoff

#: Read, hashed and written at once; three of these are in memory.
CHUNK_BYTES = 1024 * 1024
#: Without a byte for so long, the connection is opened again.
STALL_SECONDS = 30.0
#: For a document that lists files: the largest repositories of the hub have 2 MB.
MAX_DOCUMENT_BYTES, DOCUMENT_SECONDS = 16 * 1024 * 1024, 120.0
#: In a row without progress.
MAX_FAILURES = 5
#: How often the file may change on the server meanwhile.
MAX_RESTARTS = 3
BACKOFF = Backoff(first_seconds=0.5, longest_seconds=8.0)
#: Parts of this size are written to the disk. If the server doesn't give the size, the room is checked for each.
_PART_BYTES = 256 * 1024 * 1024

#: Gets the step, and the bytes done and in all.
Progress = Callable[[str, int, int | None], None]


class _Interrupted(Exception):
    """The transfer ended before the file did, or the file changed. Another attempt may succeed."""


class Challenged(Exception):
    """A registry wants a token from elsewhere; the argument is its challenge."""


class _Whole(msgspec.Struct, frozen=True):
    """What the partial file is a part of."""

    etag: str = ""
    size: int | None = None


class PartialFile:
    """A file that grows, and the SHA-256 of its content. Its owner has locked it."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path = path
        self._progress = progress
        self._whole_file = path.with_suffix(".json")
        self._hasher = ThreadPoolExecutor(1, "sha256")
        #: Writes to the disk meanwhile, so that the last sync is short.
        self._syncer = ThreadPoolExecutor(1, "sync")
        self._syncing: Future[None] | None = None
        self._sync_at = 0
        self._hashing: Future[None] | None = None
        self._digest = hashlib.sha256()
        self._file: IO[bytes]
        self.whole = _Whole()
        self.size = 0
        self.restarts = 0

    @contextmanager
    def opened(self) -> Iterator["PartialFile"]:
        """Read what an earlier download left."""
        with self._path.open("a+b", buffering=0) as self._file, self._hasher, self._syncer:
            try:
                self.whole = msgspec.json.decode(self._whole_file.read_bytes(), type=_Whole)
            except (OSError, ValueError):
                self._file.truncate(0)
            self._file.seek(0)
            while read := self._file.read(CHUNK_BYTES):
                self._hash(read)
                self.report("checking")
            yield self

    def restart(self) -> None:
        """Forget the content."""
        self.digest()
        self._file.truncate(0)
        self.restarts += 1
        self._digest, self.size, self.whole = hashlib.sha256(), 0, _Whole()

    def begin(self, whole: _Whole) -> None:
        if whole != self.whole:
            private_file.replace(self._whole_file, msgspec.json.encode(whole))
            self.whole = whole

    def write(self, chunk: bytes) -> None:
        """Raises TooLarge if the disk is full."""
        left = memoryview(chunk)
        try:
            while left:
                left = left[self._file.write(left) :]
            if self.size >= self._sync_at and (self._syncing is None or self._syncing.done()):
                self._finish_sync()
                self._sync_at = self.size + _PART_BYTES
                self._syncing = self._syncer.submit(os.fsync, self._file.fileno())
        except OSError as error:
            self._file.truncate(self.size)
            raise errors.TooLarge(f"cannot write {self._path}: {error.strerror}", hint="run the same command again; it resumes") from error
        self._hash(chunk)

    def report(self, step: str) -> None:
        self._progress(step, self.size, self.whole.size)

    def sync(self) -> None:
        """Raises OSError."""
        self._finish_sync()
        os.fsync(self._file.fileno())

    def _finish_sync(self) -> None:
        # The kernel reports an error once, so that a later sync would succeed.
        if self._syncing is not None:
            self._syncing.result()

    def digest(self) -> str:
        if self._hashing is not None:
            self._hashing.result()
        return self._digest.hexdigest()

    def _hash(self, chunk: bytes) -> None:
        # While one chunk is hashed, the next is read.
        if self._hashing is not None:
            self._hashing.result()
        self._hashing = self._hasher.submit(self._digest.update, chunk)
        self.size += len(chunk)


def fetch(remote: RemoteFile, path: Path, check_room: Callable[[int], None], progress: Progress) -> tuple[str, int]:
    """Download into ``path``; returns the SHA-256 and the size. ``check_room`` raises if there is no room for so many more bytes.

    Raises BadRequest, NotFound, NotAllowed, TooLarge, PeerError, Unavailable and DeadlineExceeded.
    """
    opener = _opener(remote)
    if remote.is_local:
        # It may have changed since a copy was broken off.
        path.unlink(missing_ok=True)
    with PartialFile(path, progress).opened() as partial:

        def receive() -> None:
            if partial.whole.size is None or partial.size != partial.whole.size:
                with opener.open(_request(remote, partial), timeout=STALL_SECONDS) as response:
                    _receive(response, remote, partial, check_room)

        _retry(receive, remote, partial)
        partial.sync()
        digest = partial.digest()
        if remote.sha256 is not None and digest != remote.sha256:
            partial.restart()
            raise errors.PeerError(f"{remote.shown} has the SHA-256 {digest}, but should have {remote.sha256}", hint="check both")
        return digest, partial.size


def adopt(whole: Path, partial: Path) -> None:
    """Let the next ``fetch`` check a whole file instead of downloading it."""
    whole.replace(partial)
    private_file.replace(partial.with_suffix(".json"), msgspec.json.encode(_Whole(size=partial.stat().st_size)))


def read_document(remote: RemoteFile) -> bytes:
    """Read a document that lists files. Raises what ``fetch`` raises, and Challenged."""
    opener, body = _opener(remote), b""

    def read() -> None:
        nonlocal body
        until = time.monotonic() + DOCUMENT_SECONDS
        try:
            with opener.open(urllib.request.Request(remote.url, headers=_headers(remote)), timeout=STALL_SECONDS) as response:  # noqa: S310
                body = b""
                while chunk := response.read1(CHUNK_BYTES):
                    body += chunk
                    if len(body) > MAX_DOCUMENT_BYTES or time.monotonic() > until:
                        raise errors.PeerError(f"the list of files at {remote.shown} is too long, or comes too slowly")
        except urllib.error.HTTPError as error:
            # A server to which we were redirected must not choose where the credentials go.
            is_asked = _origin(error.url) == _origin(remote.url)
            if error.code == 401 and is_asked and (challenge := error.headers.get("WWW-Authenticate")):
                error.close()
                raise Challenged(challenge) from error
            raise

    _retry(read, remote, None)
    return body


def _retry(attempt: Callable[[], None], remote: RemoteFile, partial: PartialFile | None) -> None:
    """Repeat the attempt until it succeeds, makes no progress several times, or fails in a way that will not change."""
    failures = 0
    while True:
        before = 0 if partial is None else partial.size
        try:
            return attempt()
        except (OSError, http.client.HTTPException, _Interrupted) as error:
            _raise_if_final(error, remote, partial)
            failures = 1 if partial is not None and partial.size > before else failures + 1
            if failures > MAX_FAILURES or (partial is not None and partial.restarts > MAX_RESTARTS):
                raise _given_up(error, remote) from error
        if partial is not None:
            partial.report("retrying")
        time.sleep(BACKOFF.pause(failures))


def _request(remote: RemoteFile, partial: PartialFile) -> urllib.request.Request:
    # A part can be continued if it certainly belongs to the same file: by its tag, or by the checksum at the end.
    if partial.size and not (partial.whole.etag or remote.sha256):
        partial.restart()
    headers = _headers(remote)
    if partial.size:
        headers["Range"] = f"bytes={partial.size}-"
        if partial.whole.etag:
            headers["If-Range"] = partial.whole.etag
    return urllib.request.Request(remote.url, headers=headers)  # noqa: S310 - check_address was called


def _headers(remote: RemoteFile) -> dict[str, str]:
    return {"Accept-Encoding": "identity", "User-Agent": "aimesh", **remote.headers}


def _receive(response: http.client.HTTPResponse, remote: RemoteFile, partial: PartialFile, check_room: Callable[[int], None]) -> None:
    """Read a response to its end. Raises OSError, HTTPException and _Interrupted."""
    whole = _read_head(response, partial)
    partial.begin(whole)
    has_room_for = partial.size
    while True:
        if partial.size >= has_room_for:
            check_room(_PART_BYTES if whole.size is None else whole.size - partial.size)
            has_room_for = partial.size + _PART_BYTES
        if not (chunk := response.read1(CHUNK_BYTES)):
            break
        if not partial.size and not b"GGUF".startswith(chunk[:4]):
            raise errors.BadRequest(f"{remote.shown} is not a GGUF file{', but a web page' if chunk[:1] == b'<' else ''}")
        partial.write(chunk)
        partial.report("copying" if remote.is_local else "downloading")
    if partial.size != (whole.size or partial.size):
        raise _Interrupted(f"it ended after {partial.size} of {whole.size} bytes")


def _read_head(response: http.client.HTTPResponse, partial: PartialFile) -> _Whole:
    """Return what the body belongs to. Forgets the partial file if the server sends another file, or all of it."""
    headers = response.headers
    tag = headers.get("ETag", "")
    # A weak tag doesn't identify the bytes.
    etag = tag if tag.startswith('"') and len(tag) < 1024 else ""
    if response.status != 206:
        if partial.size:
            partial.restart()
        length = headers.get("Content-Length", "")
        return _Whole(etag, int(length) if length.isdecimal() else None)
    place, _, total = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    whole = _Whole(partial.whole.etag or etag, int(total) if total.isdecimal() else None)
    if not place.startswith(f"{partial.size}-") or partial.whole.size not in (None, whole.size) or etag not in ("", whole.etag):
        partial.restart()
        raise _Interrupted("the file on the server changed during the download")
    return whole


def _raise_if_final(error: Exception, remote: RemoteFile, partial: PartialFile | None) -> None:
    """Raise an error for people if another attempt would fail in the same way."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        if error.code in (401, 403):
            raise errors.NotAllowed(f"the server of {remote.shown} refused access ({error.code})", hint="use --token-file") from error
        if error.code in (404, 410):
            raise errors.NotFound(f"there is no {remote.shown} ({error.code})", hint="check the address") from error
        if error.code == 416 and partial is not None:
            partial.restart()
        elif error.code < 500 and error.code not in (408, 425, 429):
            raise errors.PeerError(f"the server of {remote.shown} answered {error.code}: {error.reason}") from error
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, ssl.SSLCertVerificationError):
        text = f"the certificate of {remote.shown} is not trusted: {error.reason.verify_message}"
        raise errors.PeerError(text, hint="for a private certificate authority, set SSL_CERT_FILE to its certificate") from error


def _given_up(error: Exception, remote: RemoteFile) -> errors.AimeshError:
    hint = "check the address and the network, then run the same command again; it resumes"
    reason = error.reason if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError) else error
    if isinstance(reason, TimeoutError):
        return errors.DeadlineExceeded(f"{remote.shown}: the server sent nothing for {STALL_SECONDS:.0f} s", hint=hint)
    return errors.Unavailable(f"{remote.shown} could not be downloaded: {reason or type(reason).__name__}", hint=hint)


def _origin(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def check_next(url: str, remote: RemoteFile) -> None:
    """Check an address that a server sends us to while we read ``remote``. Raises BadRequest, also for this machine unless ``remote`` is on
    it: programs here often trust every caller from loopback."""
    model_reference.check_address(url, insecure=remote.insecure)
    if _is_here(url) and not _is_here(remote.url):
        host = urllib.parse.urlsplit(url).hostname
        raise errors.BadRequest(f"the server of {remote.shown} sends us to this machine ({host})", hint="give that address yourself")


def _is_here(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        # Also numbers, such as 127.1 and 2130706433.
        found = {str(place[0]) for *_, place in socket.getaddrinfo(host.rstrip("."), None)}
    except (OSError, UnicodeError):
        found = {host}  # only a proxy may know the name
    parsed = [addresses.parse(address.partition("%")[0]) for address in found]
    return addresses.is_loopback(host.rstrip(".")) or any(each is not None and (each.is_loopback or each.is_unspecified) for each in parsed)


class _CarefulRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to addresses that are allowed, and takes the token along to the same server only."""

    def __init__(self, remote: RemoteFile) -> None:
        self._remote = remote

    def redirect_request(  # noqa: PLR0917 - the signature of urllib
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        check_next(newurl, self._remote)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and _origin(req.full_url) != _origin(newurl):
            request.remove_header("Authorization")
        return request


def _opener(remote: RemoteFile) -> urllib.request.OpenerDirector:
    """Without the handlers for FTP and data that urllib would add. Proxies and certificates come from the environment."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        *(urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler()),
        *(urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor(), _CarefulRedirects(remote)),
    ):
        opener.add_handler(handler)
    if remote.is_local:
        opener.add_handler(urllib.request.FileHandler())
    return opener
