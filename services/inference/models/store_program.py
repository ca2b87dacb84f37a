"""Changes a worker's store of models for `aicli models`: `python -m services.inference.models.store_program`.

It reads a StoreRequest from stdin and writes StoreLines to stdout. Killed at any time, it leaves a download that the next one resumes.
"""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import assert_never

import msgspec

from services.inference.models import download, model_store
from services.inference.models.download import Challenged, Progress
from services.inference.models.model_store import ModelStore
from services.inference.models.quantities import parse_bytes
from shared import confinement, errors, model_folder, model_reference, model_sources
from shared.api.inference import Assignment, BegunFile, PullProgress, StoredModel, StoreLine, StoreRequest, StoreResult
from shared.model_reference import PullPlan, RemoteFile
from shared.models import manifest
from shared.timing.transfer_speed import TransferSpeed
from shared.types import ModelName

#: How often a download may outlive its token.
MAX_PLANS = 100
_MAX_REQUEST_BYTES = 64 * 1024
_MAX_TOKEN_CHARACTERS = 16 * 1024
#: RFC 6750 section 2.1.
_TOKEN = re.compile("[A-Za-z0-9._~+/-]+=*")
#: A user and a password.
_PASSWORD = re.compile("[^\\s:]+:[\x21-\x7e]+")
#: Of workers that share a store and call one model differently.
_MAX_SOURCES = 16
#: Between two updates of the progress.
_SHOW_SECONDS = 0.2


def carry_out(request: StoreRequest) -> StoreResult:
    """Raises AimeshError and OSError."""
    store = ModelStore(Path(request.folder), parse_bytes(request.quota) if request.quota else None)
    store.ensure_folders()
    match request.command:
        case "pull" | "add":
            return _Pull(request, store).run()
        case "remove":
            if store.get(request.target).assignment is not None:
                store.refuse(ModelName(request.target))
            model, freed_bytes = store.remove(request.target)
            return StoreResult(models=(model,), freed_bytes=freed_bytes)
        case "show":
            return StoreResult(models=(store.get(request.target),) if request.target else store.models())
        case "prune":
            return StoreResult(freed_bytes=store.prune())
        case command:
            assert_never(command)


class _Pull:
    def __init__(self, request: StoreRequest, store: ModelStore) -> None:
        self._request = request
        self._store = store
        self._show = _ProgressLines()
        self._began = datetime.now(UTC)
        self._source = request.target if request.command == "add" else model_sources.redact(request.target)

    def run(self) -> StoreResult:
        plans = 0
        while True:
            plan, plans = find_plan(self._request), plans + 1
            name, files = model_store.check_store_name(self._request.name or plan.name), _with_projector(plan, self._request)
            self._show.has_received = False
            try:
                with ExitStack() as locks, self._show.shown():
                    waits = partial(self._show, "waiting for another download of it", 0, None)
                    partials = [locks.enter_context(self._store.partial(file.key, waits)) for file in files]
                    self._show.note = partial(self._store.note_progress, files[0].key, name)
                    return self._download(name, files, partials, len(plan.files))
            except errors.NotAllowed:
                # A registry's token expires after minutes.
                if plans == MAX_PLANS or not self._show.has_received:
                    raise

    def _download(self, name: ModelName, files: Sequence[RemoteFile], partials: Sequence[Path], parts: int) -> StoreResult:
        """The file behind the ``parts`` is the projector."""
        known, key = self._store.find(name), manifest.weights_digest([file.key for file in files])
        wanted = [file.sha256 or "" for file in files]
        is_same = known is not None and all(wanted) and (known.digest, known.projector) == _joined(wanted, parts)
        # Another process may just have pulled it.
        if known is not None and known.source_key == key and (is_same or known.stored_at >= self._began):
            kept = {"pulled_as": self._pulled_as(known, key), "assignment": self._assignment(known)}
            self._store.update(model := msgspec.structs.replace(known, **kept))
            return StoreResult(models=(model,), unchanged=True)
        total, done, digests = sum(file.size or 0 for file in files), 0, []
        for file, each in zip(files, partials, strict=True):
            if file.sha256 is not None and (copied := self._store.copied(file.sha256)).exists():
                download.adopt(copied, each)
        self._store.check_room(total - sum(each.stat().st_size for each in partials if each.exists()))
        first = files[0]
        if parts == 1 and first.sha256 is not None and first.size:
            _write(StoreLine(begun=BegunFile(str(partials[0]), first.sha256, first.size)))
        for file, each in zip(files, partials, strict=True):
            digest, size = download.fetch(file, each, self._store.check_room, self._show.behind(done, total))
            done += size
            digests.append(digest)
        digest, projector = _joined(digests, parts)
        model = StoredModel(
            name=name,
            digest=digest,
            size=done,
            source=self._source,
            stored_at=datetime.now(UTC),
            source_key=key,
            parts=parts,
            projector=projector,
            pulled_as=self._pulled_as(known, key),
            assignment=self._assignment(known),
        )
        self._store.commit(partials, model)
        return StoreResult(models=(model,))

    def _assignment(self, known: StoredModel | None) -> Assignment | None:
        """What a person pulled stays theirs, and what a person asks for becomes theirs."""
        return None if known is not None and known.assignment is None else self._request.assignment

    def _pulled_as(self, known: StoredModel | None, key: str) -> tuple[str, ...]:
        """Return what MODELS_PULL calls the model, unless a person asked for it, now or before."""
        if not self._request.by_settings:
            return ()
        if known is None or (self._source != known.source and key != known.source_key):
            return (self._source,)
        return known.pulled_as and tuple(dict.fromkeys((*known.pulled_as, self._source)))[-_MAX_SOURCES:]


def _joined(digests: list[str], parts: int) -> tuple[str, str]:
    """Return the digest of a model, and that of its projector."""
    return manifest.weights_digest(digests[:parts]), "".join(digests[parts:])


def _with_projector(plan: PullPlan, request: StoreRequest) -> tuple[RemoteFile, ...]:
    """Find the file for images that a person wants to pull, too. Raises what ``find_plan`` raises."""
    if request.projector == "none":
        return plan.files
    if not request.projector:
        return (*plan.files, *([] if plan.projector is None else [plan.projector]))
    if request.command == "add":
        return (*plan.files, _local(Path(request.projector)))
    found = find_plan(msgspec.structs.replace(request, target=request.projector)).files
    if len(found) != 1:
        raise errors.BadRequest(f"{request.projector[:200]} is not one file", hint="write --projector hf:OWNER/REPO:FILE, or a URL")
    return (*plan.files, *found)


def _local(file: Path) -> RemoteFile:
    return RemoteFile(url=file.absolute().as_uri(), size=file.stat().st_size)


def find_plan(request: StoreRequest) -> PullPlan:
    """Find the files of what a person wants to pull or add. Raises what ``download.read_document`` and ``model_reference.plan`` raise."""
    if request.command == "add":
        file = Path(request.target)
        model_store.check_model(file)
        projector = model_folder.find_projector(file)
        return PullPlan(file.stem, (_local(file),), None if projector is None else _local(projector))
    secret = None if request.token_file is None else _read_token(Path(request.token_file))
    planned = model_reference.plan(request.target, secret, request.sources, insecure=request.insecure)
    if isinstance(planned, PullPlan):
        return planned
    document = planned.document
    try:
        try:
            body = download.read_document(document)
        except Challenged as challenge:
            if (where := model_reference.plan_token(str(challenge), document)) is None:
                raise
            download.check_next(where.url, document)
            granted = model_reference.read_token(download.read_document(where), where)
            document = replace(document, headers={**document.headers, **granted})
            body = download.read_document(document)
    except Challenged:
        raise errors.NotAllowed(f"the server of {document.shown} refused access", hint="use --token-file") from None
    return planned.choose(body, document.headers)


def _read_token(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as opened:
        token = opened.read(_MAX_TOKEN_CHARACTERS).strip()
    if not (_TOKEN.fullmatch(token) or _PASSWORD.fullmatch(token)):
        raise errors.BadRequest(f"{file} does not contain a token (one line of letters, digits and -._~+/=) or user:password")
    return token


class _ProgressLines:
    """Writes a line when the step changes, and several times a second in between, also while nothing arrives."""

    def __init__(self) -> None:
        self._latest, self._speed = PullProgress("", 0), TransferSpeed(time.monotonic())
        self._writing = threading.Lock()
        self.has_received = False
        #: Called with each progress, for other processes.
        self.note: Callable[[PullProgress], None] = lambda progress: None

    @contextmanager
    def shown(self) -> Iterator[None]:
        ended = threading.Event()

        def repeat() -> None:
            while not ended.wait(_SHOW_SECONDS):
                self._show()

        thread = threading.Thread(target=repeat, name="progress")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def behind(self, before_bytes: int, total_bytes: int) -> Progress:
        """Return what shows the progress of a part behind other parts; the total is 0 if unknown."""
        return lambda step, done, size: self(step, before_bytes + done, total_bytes or size)

    def __call__(self, step: str, done_bytes: int, total_bytes: int | None) -> None:
        self.has_received |= step == "downloading"
        is_new, self._latest = step != self._latest.step, PullProgress(step, done_bytes, total_bytes)
        if is_new:
            self._speed = TransferSpeed(time.monotonic(), done_bytes)
        if is_new or done_bytes == total_bytes:
            self._show()

    def _show(self) -> None:
        with self._writing:
            latest = self._latest
            speed = self._speed.measure(time.monotonic(), latest.done_bytes)
            progress = msgspec.structs.replace(latest, bytes_per_second=round(speed))
            if latest.step:
                self.note(progress)
                _write(StoreLine(progress=progress))


def _write(line: StoreLine) -> None:
    try:
        # With PYTHONUNBUFFERED, sys.stdout.buffer is the bare file, which may write a part only.
        with open(sys.stdout.fileno(), "wb", closefd=False) as out:
            out.write(msgspec.json.encode(line) + b"\n")
    except BrokenPipeError:
        # The command was killed. What was written can be resumed.
        os._exit(1)


def main() -> None:
    # Ctrl-C ends it at once: nothing needs to be cleaned up.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        request = msgspec.json.decode(sys.stdin.buffer.read(_MAX_REQUEST_BYTES), type=StoreRequest)
        if request.parent is not None:
            confinement.die_with(request.parent)
        result = carry_out(request)
    except errors.AimeshError as error:
        result = StoreResult(problem=error.to_problem())
    except (OSError, ValueError) as error:
        why = f"{error.filename or 'the store'}: {error.strerror}" if isinstance(error, OSError) else str(error)
        result = StoreResult(problem=errors.BadSettings(f"cannot use {why}", hint="run it as the worker's user").to_problem())
    _write(StoreLine(result=result))


if __name__ == "__main__":
    main()
