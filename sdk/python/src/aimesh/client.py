"""The client for programs without asyncio.  `async_client` is the same for asyncio."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TypeVar, Unpack

import httpx

from aimesh import calls, conversations, surroundings
from aimesh.answers import Answer, Embeddings, Model, NewApiKey, Quota, Session, UsageReport, User
from aimesh.calls import ApiCall, KeyLimits, Options
from aimesh.conversations import CallTerms, Conversation
from aimesh.renewal import Renewal
from aimesh.wire import Wire

T = TypeVar("T")


class Client:
    """The platform, for one API key or one login. Safe for several threads; every method raises AimeshError. ``close`` it, or use it
    with ``with``.

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
        http: httpx.Client | None = None,
        session: Session | None = None,
    ) -> None:
        self._around = surroundings.of_process(api_key, base_url, max_retries, session)
        self._timeout = timeout
        self._owns_http = http is None
        trust_env = surroundings.heeds_environment(self.base_url)
        self._http = http if http is not None else httpx.Client(limits=surroundings.LIMITS, trust_env=trust_env)
        login = self._around.login
        self._renewal = None if login is None else Renewal(self._http, self._around, login)
        self.keys = Keys(self)

    def __repr__(self) -> str:
        return f"Client(base_url={self.base_url!r})"

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    @property
    def base_url(self) -> str:
        return self._around.settings.base_url

    @property
    def session(self) -> Session | None:
        """The one that was given, or what has become of it since: each renewal spends the session token before."""
        return None if self._around.login is None else self._around.login.session

    def close(self) -> None:
        """Safe to call twice."""
        if self._owns_http:
            self._http.close()

    # --- models -----------------------------------------------------------------------------------------------------

    def inference(
        self, prompt: str | None = None, *, timeout: float | None = None, idempotency_key: str | None = None, **options: Unpack[Options]
    ) -> Answer:
        """The whole answer to a prompt, or to ``messages``. Leaving early, by a timeout or by Ctrl-C, ends it on the worker, too.

        With an ``idempotency_key`` of your own the same request under the same key gets the same answer for a day and is paid once; it
        goes on for half a minute when you leave.
        """
        terms = CallTerms(seconds=self._seconds(timeout), idempotency_key=idempotency_key)
        return self._run(conversations.whole(calls.inference(prompt, options), self._around, terms))

    def stream(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        resume: bool = True,
        **options: Unpack[Options],
    ) -> "Stream":
        """The answer as it comes; it is asked for when it is first read. A connection that breaks is made anew, and the text goes on
        without a gap or a repeat; ``resume=False`` ends with the connection."""
        terms = CallTerms(seconds=self._seconds(timeout), idempotency_key=idempotency_key, resume=resume)
        conversation = conversations.streamed(calls.inference(prompt, options, stream=True), self._around, terms)
        return Stream(self._wire(conversation), conversation)

    def embed(
        self, texts: str | Sequence[str], *, model: str | None = None, dimensions: int | None = None, timeout: float | None = None
    ) -> Embeddings:
        """A vector for each text. Each vector is cut to so many ``dimensions`` and made one long again."""
        return self.ask(calls.embed(texts, model, dimensions), timeout)

    def models(self, *, timeout: float | None = None) -> tuple[Model, ...]:
        """The models that are served, the default first."""
        return self.ask(calls.models(), timeout)

    # --- the account ------------------------------------------------------------------------------------------------

    def usage(self, *, timeout: float | None = None) -> UsageReport:
        """What you used, by day."""
        return self.ask(calls.usage(), timeout)

    def quota(self, *, timeout: float | None = None) -> Quota:
        """What you may still use."""
        return self.ask(calls.quota(), timeout)

    def register(self, username: str, email: str, password: str, *, timeout: float | None = None) -> User:
        """Make an account. Needs no key."""
        return self.ask(calls.register(username, email, password), timeout)

    def login(self, username: str, password: str, code: str | None = None, *, timeout: float | None = None) -> Session:
        """By name or mail address. Needs no key; give the session to another Client, in place of a key."""
        return self.ask(calls.login(username, password, code), timeout)

    def ask(self, call: ApiCall[T], timeout: float | None) -> T:
        """Any call of ``aimesh.calls``."""
        return self._run(conversations.whole(call, self._around, CallTerms(seconds=self._seconds(timeout))))

    def _run(self, conversation: Conversation[T]) -> T:
        with self._wire(conversation) as wire:
            wire.advance()
        return conversation.result

    def _wire(self, conversation: Conversation[T]) -> Wire[T]:
        return Wire(self._http, self.base_url, conversation, None if self._renewal is None else self._renewal.renew)

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout


class Keys:
    """API keys. Who makes one has logged in: a client with the session of a login makes them."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, name: str = "default", *, timeout: float | None = None, **limits: Unpack[KeyLimits]) -> NewApiKey:
        """The only answer that ever has a whole key."""
        return self._client.ask(calls.create_key(name, limits), timeout)


class Stream:
    """The pieces of one answer's text. Use it with ``with``, in one thread; leaving the block before its end stops the generation."""

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
        """Raises AimeshError; what came before it stays in ``text``."""
        if self._is_over:
            raise StopIteration
        try:
            piece = self._wire.advance()
        except BaseException:
            self.close()
            raise
        if piece is None:
            self.close()
            raise StopIteration
        return piece

    def close(self) -> None:
        """Stop the generation, if it still runs. Safe to call twice."""
        self._is_over = True
        self._wire.close()

    @property
    def text(self) -> str:
        """What has come so far."""
        return self._conversation.text

    @property
    def answer(self) -> Answer:
        """All of it, when the stream was read to its end; RuntimeError before that."""
        return self._conversation.result
