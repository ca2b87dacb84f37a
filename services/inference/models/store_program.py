"""Changes a worker's store of models for `aicli models`: `python -m services.inference.models.store_program`.

It reads a StoreRequest from stdin, shows its progress on stderr and writes a StoreResult to stdout. Killed at any time, it leaves a
download that the next one resumes.
"""

import re
import signal
import sys
import time
import urllib.parse
from datetime import UTC, datetime
from pathlib import Path
from typing import assert_never

import msgspec

from services.inference.models import download, model_store
from services.inference.models.download import PartialFile, RemoteFile
from services.inference.models.model_store import ModelStore
from services.inference.models.quantities import parse_bytes, show_bytes
from shared import errors
from shared.api.inference import StoredModel, StoreRequest, StoreResult

_MAX_REQUEST_BYTES = 64 * 1024
_MAX_TOKEN_CHARACTERS = 16 * 1024
#: RFC 6750 section 2.1.
_TOKEN = re.compile("[A-Za-z0-9._~+/-]+=*")
_SHA256 = re.compile("sha256=([0-9a-fA-F]{64})")
#: Between two updates of the progress.
_SHOW_SECONDS = 0.2


def carry_out(request: StoreRequest) -> StoreResult:
    """Raises AimeshError and OSError."""
    store = ModelStore(Path(request.folder), parse_bytes(request.quota) if request.quota else None)
    store.ensure_folders()
    match request.command:
        case "pull":
            return _pull(request, store)
        case "add":
            return _add(request, store)
        case "remove":
            model, freed_bytes = store.remove(request.target)
            return StoreResult(models=(model,), freed_bytes=freed_bytes)
        case "show":
            return StoreResult(models=(store.get(request.target),) if request.target else store.models())
        case "prune":
            return StoreResult(freed_bytes=store.prune())
        case command:
            assert_never(command)


def _pull(request: StoreRequest, store: ModelStore) -> StoreResult:
    remote, show, began = read_source(request), _ProgressLine(), datetime.now(UTC)
    file = urllib.parse.unquote(urllib.parse.urlsplit(remote.url).path.rpartition("/")[2])
    name = model_store.check_store_name(request.name or file.removesuffix(".gguf"))
    with store.partial(remote.key, lambda: show("waiting for another download of it", 0, None)) as partial:
        known = store.find(name)
        # Another process may just have pulled it.
        if known is not None and known.source_key == remote.key and (known.digest == remote.sha256 or known.stored_at >= began):
            return StoreResult(models=(known,), unchanged=True)
        digest, size = download.fetch(remote, partial, store.check_room, show)
        now = datetime.now(UTC)
        model = StoredModel(name=name, digest=digest, size=size, source=remote.shown, stored_at=now, source_key=remote.key)
        store.commit(partial, model)
    return StoreResult(models=(model,))


def _add(request: StoreRequest, store: ModelStore) -> StoreResult:
    file, show = Path(request.target), _ProgressLine()
    name, key = model_store.check_store_name(request.name or file.stem), RemoteFile(url=file.as_uri()).key
    model_store.check_model(file)
    with store.partial(key, lambda: show("waiting", 0, None)) as partial:
        partial.unlink(missing_ok=True)
        total = file.stat().st_size
        store.check_room(total)
        with file.open("rb") as source, PartialFile(partial, show).opened() as copy:
            while chunk := source.read(download.CHUNK_BYTES):
                copy.write(chunk)
                show("copying", copy.size, total)
            copy.sync()
        now = datetime.now(UTC)
        model = StoredModel(name=name, digest=copy.digest(), size=copy.size, source=str(file), stored_at=now, source_key=key)
        store.commit(partial, model)
    return StoreResult(models=(model,))


def read_source(request: StoreRequest) -> RemoteFile:
    """Read what a person wants to pull. Raises BadRequest."""
    url, _, fragment = request.target.partition("#")
    download.check_address(url, insecure=request.insecure)
    digest = _SHA256.fullmatch(fragment)
    if fragment and digest is None:
        raise errors.BadRequest("after the # of the URL, only sha256= and 64 hexadecimal digits are allowed")
    token = None if request.token_file is None else _read_token(Path(request.token_file))
    return RemoteFile(url=url, sha256=None if digest is None else digest[1].lower(), token=token, insecure=request.insecure)


def _read_token(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as opened:
        token = opened.read(_MAX_TOKEN_CHARACTERS).strip()
    if not _TOKEN.fullmatch(token):
        raise errors.BadRequest(f"{file} does not contain a token: one line of letters, digits and -._~+/=")
    return token


class _ProgressLine:
    """A line on a terminal that is written again and again; elsewhere a line per step."""

    def __init__(self) -> None:
        self._step, self._at = "", 0.0

    def __call__(self, step: str, done_bytes: int, total_bytes: int | None) -> None:
        is_new, is_terminal, now = step != self._step, sys.stderr.isatty(), time.monotonic()
        if is_new or (is_terminal and (now - self._at >= _SHOW_SECONDS or done_bytes == total_bytes)):
            share = f" of {show_bytes(total_bytes)}, {done_bytes * 100 // max(1, total_bytes)} %" if total_bytes is not None else ""
            start, end = ("\r\x1b[K", "\n" if done_bytes == total_bytes else "") if is_terminal else ("", "\n")
            sys.stderr.write(f"{start}{step}: {show_bytes(done_bytes)}{share}{end}")
            sys.stderr.flush()
            self._step, self._at = step, now


def main() -> None:
    # Ctrl-C ends it at once: nothing needs to be cleaned up.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        result = carry_out(msgspec.json.decode(sys.stdin.buffer.read(_MAX_REQUEST_BYTES), type=StoreRequest))
    except errors.AimeshError as error:
        result = StoreResult(problem=error.to_problem())
    except (OSError, ValueError) as error:
        why = f"{error.filename or 'the store'}: {error.strerror}" if isinstance(error, OSError) else str(error)
        result = StoreResult(problem=errors.BadSettings(f"cannot use {why}", hint="run it as the worker's user").to_problem())
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
