"""Passwords: which are good enough, and their argon2id hashes, made in one pool of threads with a bounded queue."""

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

SHORTEST_MINIMUM = 8
LONGEST = 256
#: Each holds 19 MiB while it hashes: 304 MiB at most, also on a machine of 64 cores, however many log in at once.
_MOST_THREADS = 16
#: Waiting for a thread. 50 wait for 1.3 s on one core; who comes later is better told so at once.
_LONGEST_QUEUE = 50
#: What must be left of a password when a word that anybody would guess is taken out of it.
_LEAST_BESIDE_A_WORD = 5
#: Of the threads that hash, where 0 is how all else runs: beside a model that keeps every core busy a hash then has a tenth of one.
_NICENESS = 10
_SHORTEST_WORD = 4


def find_fault(password: str, words: Iterable[str], min_length: int, common: frozenset[str]) -> str | None:
    """What is wrong with a new password, as a sentence. ``words`` are those that an attacker would try first for this user.

    No rules about digits and signs: they make passwords worse (NIST SP 800-63B-4 §3.1.1.2).
    """
    if len(password) < min_length:
        return f"it is shorter than {min_length} characters"
    if len(password) > LONGEST:
        return f"it is longer than {LONGEST} characters"
    plain = password.casefold()
    if plain in common or len(set(plain)) == 1:
        return "it is one of the most common passwords"
    for word in words:
        if len(word) >= _SHORTEST_WORD and len(plain.replace(word.casefold(), "")) < min(_LEAST_BESIDE_A_WORD, len(plain)):
            return "it is hardly more than your name, your address or the name of this product"
    return None


class Passwords:
    """Hashes and compares; every method may raise Overloaded. Opened and closed by the service."""

    def __init__(self, pool: ThreadPoolExecutor, threads: int, hasher: argon2.PasswordHasher, min_length: int) -> None:
        self._pool = pool
        self._most_at_once = threads + _LONGEST_QUEUE
        self._hasher = hasher
        self._min_length = min_length
        self._common = frozenset(Path(__file__).with_name("common_passwords.txt").read_text(encoding="utf-8").split())
        #: Compared with where there is no such user, so that the answer takes as long.
        self._nobodys_hash = hasher.hash(secrets.token_hex())
        self._at_once = 0

    @classmethod
    @contextlib.contextmanager
    def open(cls, *, min_length: int, hasher: argon2.PasswordHasher | None = None) -> Iterator["Passwords"]:
        threads = _threads(len(os.sched_getaffinity(0)))
        with ThreadPoolExecutor(threads, thread_name_prefix="argon2", initializer=_step_back) as pool:
            try:
                yield cls(pool, threads, hasher or _argon2id(), min_length)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def check(self, password: str, *, username: str, email: str) -> None:
        """Raises BadRequest for a password that must not be chosen."""
        words = (username, email.partition("@")[0], "aimesh")
        if fault := find_fault(_normal(password), words, self._min_length, self._common):
            raise errors.BadRequest(f"password: {fault}", hint=f"choose {self._min_length} to {LONGEST} characters; a sentence is good")

    async def hash(self, password: str) -> str:
        return await self._run(lambda: self._hasher.hash(_normal(password)))

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """None means that there is no such user: that is never right, and takes as long to find out."""
        possible = password_hash is not None and len(password) <= LONGEST
        right = await self._run(lambda: self._matches(password_hash or self._nobodys_hash, _normal(password[:LONGEST])))
        return right and possible

    def is_outdated(self, password_hash: str) -> bool:
        """Made with other parameters than we use now."""
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
        # Shielded, because a caller that goes away does not free the thread: it counts until the hash is done.
        return await asyncio.shield(running)

    def _finished(self, _running: object) -> None:
        self._at_once -= 1


def _threads(cores: int) -> int:
    """All cores but one: a crowd that logs in never takes the last one from the answers that are being written."""
    return min(max(1, cores - 1), _MOST_THREADS)


def _step_back() -> None:
    """A hash may wait for anything else that runs here: who logs in notices no delay of some milliseconds, but between two tokens of an
    answer one is seen. Where a thread has no priority of its own (outside Linux), the hash takes its share."""
    if sys.platform == "linux":
        # Only root may lower the niceness that a service was started with.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))


def _argon2id() -> argon2.PasswordHasher:
    """OWASP's minimum: 19 MiB, two passes; 26 ms here. With other parameters each password is hashed anew at its next login."""
    return argon2.PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1, hash_len=32, salt_len=16)


def _normal(password: str) -> str:
    """The same password typed on two systems may differ in its code points (RFC 8265 §4.2)."""
    return unicodedata.normalize("NFC", password)
