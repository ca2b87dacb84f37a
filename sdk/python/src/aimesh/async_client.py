"""The client for programs with asyncio.  `client` is the same without it."""

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TypeVar, Unpack

import httpx

from aimesh import calls, conversations, surroundings
from aimesh.answers import Answer, Embeddings, Model, NewApiKey, Quota, Session, UsageReport, User
from aimesh.async_renewal import AsyncRenewal
from aimesh.async_wire import AsyncWire
from aimesh.calls import ApiCall, KeyLimits, Options
from aimesh.conversations import CallTerms, Conversation

T = TypeVar("T")


class AsyncClient:
    """The platform, for one API key or one login. For one event loop; every method raises AimeshError. ``close`` it, or use it with
    ``async with``.

    ``timeout`` is for a whole call, repeats included: in seconds, and each call may have its own. ``http`` is for a client of httpx with
    proxies or certificates of its own; it is not closed here. ``session`` is for one of a login, in place of a key: its
    access token is renewed whenever it is too old, once for all calls that wait for it.
    """

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        *,
        timeout: float = surroundings.DEFAULT_SECONDS,
        max_retries: int = surroundings.DEFAULT_RETRIES,
        http: httpx.AsyncClient | None = None,
        session: Session | None = None,
    ) -> None:
        self._around = surroundings.of_process(api_key, base_url, max_retries, session)
        self._timeout = timeout
        self._owns_http = http is None
        trust_env = surroundings.heeds_environment(self.base_url)
        self._http = http if http is not None else httpx.AsyncClient(limits=surroundings.LIMITS, trust_env=trust_env)
        login = self._around.login
        self._renewal = None if login is None else AsyncRenewal(self._http, self._around, login)
        self.keys = AsyncKeys(self)

    def __repr__(self) -> str:
        return f"AsyncClient(base_url={self.base_url!r})"

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()

    @property
    def base_url(self) -> str:
        return self._around.settings.base_url

    @property
    def session(self) -> Session | None:
        """The one that was given, or what has become of it since: each renewal spends the session token before."""
        return None if self._around.login is None else self._around.login.session

    async def close(self) -> None:
        """Safe to call twice."""
        if self._renewal is not None:
            await self._renewal.close()
        if self._owns_http:
            await self._http.aclose()

    # --- models -----------------------------------------------------------------------------------------------------

    async def inference(
        self, prompt: str | None = None, *, timeout: float | None = None, idempotency_key: str | None = None, **options: Unpack[Options]
    ) -> Answer:
        """The whole answer to a prompt, or to ``messages``. Leaving early, by a timeout or a cancel, ends it on the worker, too.

        With an ``idempotency_key`` of your own the same request under the same key gets the same answer for a day and is paid once; it
        goes on for half a minute when you leave.
        """
        terms = CallTerms(seconds=self._seconds(timeout), idempotency_key=idempotency_key)
        return await self._run(conversations.whole(calls.inference(prompt, options), self._around, terms))

    def stream(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        resume: bool = True,
        **options: Unpack[Options],
    ) -> "AsyncStream":
        """The answer as it comes; it is asked for when it is first read. A connection that breaks is made anew, and the text goes on
        without a gap or a repeat; ``resume=False`` ends with the connection."""
        terms = CallTerms(seconds=self._seconds(timeout), idempotency_key=idempotency_key, resume=resume)
        conversation = conversations.streamed(calls.inference(prompt, options, stream=True), self._around, terms)
        return AsyncStream(self._wire(conversation), conversation)

    async def embed(
        self, texts: str | Sequence[str], *, model: str | None = None, dimensions: int | None = None, timeout: float | None = None
    ) -> Embeddings:
        """A vector for each text. Each vector is cut to so many ``dimensions`` and made one long again."""
        return await self.ask(calls.embed(texts, model, dimensions), timeout)

    async def models(self, *, timeout: float | None = None) -> tuple[Model, ...]:
        """The models that are served, the default first."""
        return await self.ask(calls.models(), timeout)

    # --- the account ------------------------------------------------------------------------------------------------

    async def usage(self, *, timeout: float | None = None) -> UsageReport:
        """What you used, by day."""
        return await self.ask(calls.usage(), timeout)

    async def quota(self, *, timeout: float | None = None) -> Quota:
        """What you may still use."""
        return await self.ask(calls.quota(), timeout)

    async def register(self, username: str, email: str, password: str, *, timeout: float | None = None) -> User:
        """Make an account. Needs no key."""
        return await self.ask(calls.register(username, email, password), timeout)

    async def login(self, username: str, password: str, code: str | None = None, *, timeout: float | None = None) -> Session:
        """By name or mail address. Needs no key; give the session to another AsyncClient, in place of a key."""
        return await self.ask(calls.login(username, password, code), timeout)

    async def ask(self, call: ApiCall[T], timeout: float | None) -> T:
        """Any call of ``aimesh.calls``."""
        return await self._run(conversations.whole(call, self._around, CallTerms(seconds=self._seconds(timeout))))

    async def _run(self, conversation: Conversation[T]) -> T:
        async with self._wire(conversation) as wire:
            await wire.advance()
        return conversation.result

    def _wire(self, conversation: Conversation[T]) -> AsyncWire[T]:
        return AsyncWire(self._http, self.base_url, conversation, None if self._renewal is None else self._renewal.renew)

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout


class AsyncKeys:
    """API keys. Who makes one has logged in: a client with the session of a login makes them."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(self, name: str = "default", *, timeout: float | None = None, **limits: Unpack[KeyLimits]) -> NewApiKey:
        """The only answer that ever has a whole key."""
        return await self._client.ask(calls.create_key(name, limits), timeout)


class AsyncStream:
    """The pieces of one answer's text. Use it with ``async with``; leaving the block before its end stops the generation."""

    def __init__(self, wire: AsyncWire[Answer], conversation: Conversation[Answer]) -> None:
        self._wire = wire
        self._conversation = conversation
        self._is_over = False

    async def __aenter__(self) -> "AsyncStream":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        """Raises AimeshError; what came before it stays in ``text``."""
        if self._is_over:
            raise StopAsyncIteration
        try:
            piece = await self._wire.advance()
        except BaseException:
            await self.close()
            raise
        if piece is None:
            await self.close()
            raise StopAsyncIteration
        return piece

    async def close(self) -> None:
        """Stop the generation, if it still runs. Safe to call twice."""
        self._is_over = True
        await self._wire.close()

    @property
    def text(self) -> str:
        """What has come so far."""
        return self._conversation.text

    @property
    def answer(self) -> Answer:
        """All of it, when the stream was read to its end; RuntimeError before that."""
        return self._conversation.result
