# Generated from async_client.py by `python -m tools.docs`. Changes made here are lost.
"""The client for programs without asyncio."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TypeVar, Unpack

import httpx

from aimesh import calls, conversations, settings
from aimesh.answers import Answer, AnswerPiece, Embeddings, Model, NewApiKey, Quota, Session, ToolCall, UsageReport, User
from aimesh.calls import ApiCall, KeyLimits, Options
from aimesh.conversations import CallTerms, Conversation
from aimesh.wire import Renewal, Wire

T = TypeVar("T")


class Client:
    """The platform, for one API key or one login. It is safe in several threads. Use it with ``with``, or ``close`` it.

    Every method raises AimeshError. ``timeout`` limits a whole call, retries included, in seconds; each call can set its own.
    ``http`` takes an httpx client with your own proxies or certificates; this client does not close it. ``session`` replaces the key by a
    login, whose access token is renewed when it expires.
    """

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        *,
        timeout: float = settings.DEFAULT_SECONDS,
        max_retries: int = settings.DEFAULT_RETRIES,
        http: httpx.Client | None = None,
        session: Session | None = None,
    ) -> None:
        self._context = settings.create_context(api_key, base_url, max_retries, session)
        self._timeout = timeout
        self._owns_http = http is None
        trust_env = settings.uses_proxy_settings(self.base_url)
        self._http = http if http is not None else httpx.Client(limits=settings.CONNECTION_LIMITS, trust_env=trust_env)
        login = self._context.login
        self._renewal = None if login is None else Renewal(self._http, self._context, login)
        self.keys = Keys(self)

    def __repr__(self) -> str:
        return f"Client(base_url={self.base_url!r})"

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    @property
    def base_url(self) -> str:
        return self._context.base_url

    @property
    def session(self) -> Session | None:
        """The current session: each renewal replaces the session that you passed."""
        return None if self._context.login is None else self._context.login.session

    def close(self) -> None:
        """Safe to call twice."""
        if self._renewal is not None:
            self._renewal.close()
        if self._owns_http:
            self._http.close()

    def inference(
        self, prompt: str | None = None, *, timeout: float | None = None, idempotency_key: str | None = None, **options: Unpack[Options]
    ) -> Answer:
        """Return the whole answer to a prompt, or to ``messages``. A timeout or Ctrl-C also stops the worker.

        With your own ``idempotency_key`` the same request gets the same answer for a day and is billed once; if you disconnect, it keeps
        running for 30 s.
        """
        terms = CallTerms(seconds=self._seconds(timeout), idempotency_key=idempotency_key)
        return self._run(conversations.whole(calls.inference(prompt, options), self._context, terms))

    def stream(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        resume: bool = True,
        **options: Unpack[Options],
    ) -> "Stream":
        """Stream the answer. The request is sent at the first read. If the connection breaks, the stream resumes without gaps or
        repeats; with ``resume=False`` it ends."""
        terms = CallTerms(seconds=self._seconds(timeout), idempotency_key=idempotency_key, resume=resume)
        conversation = conversations.streamed(calls.inference(prompt, options, stream=True), self._context, terms)
        return Stream(self._wire(conversation), conversation)

    def embed(
        self, texts: str | Sequence[str], *, model: str | None = None, dimensions: int | None = None, timeout: float | None = None
    ) -> Embeddings:
        """Return a vector for each text. ``dimensions`` truncates the vectors and normalizes them again."""
        return self.ask(calls.embed(texts, model, dimensions), timeout)

    def models(self, *, timeout: float | None = None) -> tuple[Model, ...]:
        """Return the available models, the default first."""
        return self.ask(calls.models(), timeout)

    def usage(self, *, timeout: float | None = None) -> UsageReport:
        """Return your usage by day."""
        return self.ask(calls.usage(), timeout)

    def quota(self, *, timeout: float | None = None) -> Quota:
        """Return your remaining quota, your credits and the budget of the key."""
        return self.ask(calls.quota(), timeout)

    def register(self, username: str, email: str, password: str, *, timeout: float | None = None) -> User:
        """Create an account. Needs no key."""
        return self.ask(calls.register(username, email, password), timeout)

    def login(self, username: str, password: str, code: str | None = None, *, timeout: float | None = None) -> Session:
        """Log in by username or email address. Needs no key. Pass the session to another Client instead of a key."""
        return self.ask(calls.login(username, password, code), timeout)

    def ask(self, call: ApiCall[T], timeout: float | None) -> T:
        """Send any call of ``aimesh.calls``."""
        return self._run(conversations.whole(call, self._context, CallTerms(seconds=self._seconds(timeout))))

    def _run(self, conversation: Conversation[T]) -> T:
        with self._wire(conversation) as wire:
            wire.advance()
        return conversation.result

    def _wire(self, conversation: Conversation[T]) -> Wire[T]:
        return Wire(self._http, self.base_url, conversation, None if self._renewal is None else self._renewal.renew)

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout


class Keys:
    """API keys. Creating one needs a client with a login session."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, name: str = "default", *, timeout: float | None = None, **limits: Unpack[KeyLimits]) -> NewApiKey:
        """Create a key. Only this answer contains the whole secret."""
        return self._client.ask(calls.create_key(name, limits), timeout)


class Stream:
    """The text of one answer, in pieces. Use it with ``with``, in one thread; leaving the block early stops the generation."""

    def __init__(self, wire: Wire[Answer], conversation: Conversation[Answer]) -> None:
        self._wire = wire
        self._conversation = conversation
        self._is_over = False

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """Raises AimeshError; the text so far stays in ``text``."""
        while (piece := self._next()) is not None:
            if piece.text:
                return piece.text
        raise StopIteration

    def pieces(self) -> Iterator[AnswerPiece]:
        """Yield thoughts and calls, too, as they arrive. Iterate either this or the stream."""
        while (piece := self._next()) is not None:
            yield piece

    def _next(self) -> AnswerPiece | None:
        if self._is_over:
            return None
        try:
            piece = self._wire.advance()
        except BaseException:
            self.close()
            raise
        if piece is None:
            self.close()
        return piece

    def close(self) -> None:
        """Stop the generation if it is still running. Safe to call twice."""
        self._is_over = True
        self._wire.close()

    @property
    def text(self) -> str:
        """The text so far."""
        return self._conversation.text

    @property
    def reasoning(self) -> str:
        """What the model thought so far."""
        return self._conversation.reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls so far; each is complete."""
        return self._conversation.tool_calls

    @property
    def answer(self) -> Answer:
        """The whole answer, after the last piece; RuntimeError before that."""
        return self._conversation.result
