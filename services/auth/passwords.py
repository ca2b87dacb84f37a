"""Password rules, and argon2id hashes in one thread pool with a bounded queue."""

import asyncio
import contextlib
import os
import secrets
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import argon2

from shared import errors

T = TypeVar("T")

MIN_MIN_LENGTH = 8
MAX_LENGTH = 256
#: Each hashes with 19 MiB: at most 304 MiB, even with 64 cores and many logins at once.
_MAX_THREADS = 16
#: Hashes waiting for a thread. 50 take 1.3 s on one core; further ones are better refused at once.
_MAX_QUEUE = 50
#: What must remain of a password after removing an obvious word.
_MIN_BESIDE_A_WORD = 5
#: For hashing threads; everything else runs at 0. If a model keeps every core busy, a hash gets about a tenth of one.
_NICENESS = 10
_MIN_WORD = 4


def find_fault(password: str, words: Iterable[str], min_length: int, common: frozenset[str]) -> str | None:
    """Return what is wrong with a new password, as a sentence. ``words`` are what an attacker would try first for this user.

    There are no rules about digits and symbols: they make passwords worse (NIST SP 800-63B-4 §3.1.1.2).
    """
    if len(password) < min_length:
        return f"it is shorter than {min_length} characters"
    if len(password) > MAX_LENGTH:
        return f"it is longer than {MAX_LENGTH} characters"
    plain = password.casefold()
    if plain in common or len(set(plain)) == 1:
        return "it is one of the most common passwords"
    for word in words:
        if len(word) >= _MIN_WORD and len(plain.replace(word.casefold(), "")) < min(_MIN_BESIDE_A_WORD, len(plain)):
            return "it is hardly more than your name, your address or the name of this product"
    return None


class Passwords:
    """Every method may raise Overloaded."""

    def __init__(self, pool: ThreadPoolExecutor, threads: int, hasher: argon2.PasswordHasher, min_length: int) -> None:
        self._pool = pool
        self._most_at_once = threads + _MAX_QUEUE
        self._hasher = hasher
        self._min_length = min_length
        self._common = frozenset(Path(__file__).with_name("common_passwords.txt").read_text(encoding="utf-8").split())
        #: Compared for unknown users, so the answer takes as long.
        self._dummy_hash = hasher.hash(secrets.token_hex())
        self._at_once = 0

    @classmethod
    @contextlib.contextmanager
    def open(cls, *, min_length: int, hasher: argon2.PasswordHasher | None = None) -> Iterator["Passwords"]:
        threads = _threads(len(os.sched_getaffinity(0)))
        with ThreadPoolExecutor(threads, thread_name_prefix="argon2", initializer=_lower_priority) as pool:
            try:
                yield cls(pool, threads, hasher or _argon2id(), min_length)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def check(self, password: str, *, username: str, email: str) -> None:
        """Raises BadRequest for an unacceptable password."""
        words = (username, email.partition("@")[0], "aimesh")
        if fault := find_fault(_normal(password), words, self._min_length, self._common):
            hint = f"choose {self._min_length} to {MAX_LENGTH} characters; a sentence works well"
            raise errors.BadRequest.of("password", fault, hint=hint)

    async def hash(self, password: str) -> str:
        return await self._run(lambda: self._hasher.hash(_normal(password)))

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """``None`` means that there is no such user: never right, and takes as long."""
        possible = password_hash is not None and len(password) <= MAX_LENGTH
        right = await self._run(lambda: self._matches(password_hash or self._dummy_hash, _normal(password[:MAX_LENGTH])))
        return right and possible

    def is_outdated(self, password_hash: str) -> bool:
        """Return whether the hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(password_hash)

    def _matches(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except argon2.exceptions.VerifyMismatchError:
            return False

    async def _run(self, work: Callable[[], T]) -> T:
        if self._at_once >= self._most_at_once:
            raise errors.Overloaded("too many logins at once", hint="try again in a second", retry_after_seconds=1)
        self._at_once += 1
        running = asyncio.get_running_loop().run_in_executor(self._pool, work)
        running.add_done_callback(self._finished)
        # Shielded: a canceled caller does not free the thread, so it must count until the hash is done.
        return await asyncio.shield(running)

    def _finished(self, _running: object) -> None:
        self._at_once -= 1


def _threads(cores: int) -> int:
    """Leave one core free: a crowd of logins must not slow down running answers."""
    return min(max(1, cores - 1), _MAX_THREADS)


def _lower_priority() -> None:
    """Lower the thread's priority: a login can wait some milliseconds, but a gap between two tokens is visible. Outside Linux, threads have
    no priority of their own."""
    if sys.platform == "linux":
        # Only root may lower the niceness that the service was started with.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))


def _argon2id() -> argon2.PasswordHasher:
    """OWASP's minimum: 19 MiB, two passes; 26 ms here. After a change of parameters each password is hashed again at its next login."""
    return argon2.PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1, hash_len=32, salt_len=16)


def _normal(password: str) -> str:
    """The same password typed on two systems may differ in code points (RFC 8265 §4.2)."""
    return unicodedata.normalize("NFC", password)
