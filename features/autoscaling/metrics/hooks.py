"""Calls the hook of a pool: runs its program, or posts to its webhook. Neither raises."""

import asyncio
import contextlib
import hashlib
import hmac
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Mapping

import msgspec

from features.autoscaling.rules.hook_plan import HOOK_SECONDS, HookRequest
from services.metrics import webhook
from shared.worker_pools import PoolHook

#: Of a program's errors, the end is kept.
_KEPT_BYTES = 500
_PASSED = {"PATH", "HOME", "LANG", "TZ", "AIMESH_HOME", "DOCKER_HOST", "KUBECONFIG"}


async def call_hook(hook: PoolHook, request: HookRequest, secret: str | None) -> str:
    """Return why it failed; empty if it did not. ``secret`` signs for a webhook."""
    body = msgspec.json.encode(request)
    if hook.command is not None:
        return await run_program(hook.command, body)
    assert hook.webhook is not None  # the file of pools says so
    return await _post(hook.webhook, body, str(request.key), (secret or "").encode())


async def run_program(command: tuple[str, ...], body: bytes, seconds: float = HOOK_SECONDS) -> str:
    """Run a program with the body on its standard input. After the time, kill it with all that it has started."""
    loop, said = asyncio.get_running_loop(), deque[int](maxlen=_KEPT_BYTES)
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(writing, True)

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            piece = os.read(reading, 65_536)
            said.extend(piece)
            if not piece:
                loop.remove_reader(reading)

    with tempfile.TemporaryFile() as given, contextlib.ExitStack() as closing:
        closing.callback(os.close, reading)
        given.write(body)
        given.seek(0)
        try:
            program = await asyncio.create_subprocess_exec(
                *command, stdin=given, stdout=asyncio.subprocess.DEVNULL, stderr=writing, env=_environment(os.environ),
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return f"{command[0]} can't be started: {error.strerror}"
        finally:
            os.close(writing)
        loop.add_reader(reading, read)
        try:
            # Programs that it leaves running may keep the pipe open, so only its own end is waited for.
            async with asyncio.timeout(seconds):
                await program.wait()
        except TimeoutError:
            return f"killed after {seconds:g} s"
        finally:
            loop.remove_reader(reading)
            if program.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(program.pid, signal.SIGKILL)
                await asyncio.shield(program.wait())
        read()
    text = " ".join(bytes(said).decode(errors="replace").split())
    return f"ended with {program.returncode}" + (f": {text}" if text else "") if program.returncode else ""


async def _post(url: str, body: bytes, key: str, secret: bytes) -> str:
    at = str(int(time.time()))
    headers = {"idempotency-key": key, "x-aimesh-timestamp": at, "x-aimesh-signature": sign(secret, at, body)}
    return await webhook.post(url, body, HOOK_SECONDS, headers)


def sign(secret: bytes, at: str, body: bytes) -> str:
    """Return the header ``X-Aimesh-Signature``: over the timestamp, a dot and the body."""
    return f"sha256={hmac.new(secret, at.encode() + b'.' + body, hashlib.sha256).hexdigest()}"


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return what a program may know: no secret of this service, but what the operator names SCALE_…."""
    return {name: value for name, value in own.items() if name in _PASSED or (name.startswith("SCALE_") and "SECRET" not in name)}
