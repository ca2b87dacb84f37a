"""A server with one session: its access token expires when the test says so, and each session token works once."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import aimesh

from tests.sdk.python.scripted_server import ReceivedRequest, Reply, Server, failed, whole

USER = {"id": "u", "username": "ann", "email": "a@b.c", "role": "user", "tier": "free"}
RENEW = "/api/auth/refresh"


class SessionServer(Server):
    def __init__(self, *answers: Reply) -> None:
        """``answers`` go to requests with the right token, in order; the last one repeats."""
        super().__init__(answers or [whole()])
        self.number = 1
        self.renewals = 0
        #: Sent instead of a new token.
        self.refusal: Reply | None = None
        #: Requests with an expired token are answered only when this many have arrived.
        self.together = threading.Barrier(1)
        #: Renewals wait for this.
        self.may_renew = threading.Event()
        self.may_renew.set()
        self.renewing = threading.Event()
        #: The refusal of the prompt `late` waits for this.
        self.may_refuse = threading.Event()
        self.is_late = threading.Event()

    @property
    def session(self) -> aimesh.Session:
        return aimesh.Session(f"access-{self.number}", 600, aimesh.User("u", "ann", "a@b.c", "user", "free"), f"session-{self.number}")

    def age(self) -> None:
        """Let the current access token expire."""
        self.number += 1

    def _answer(self, connection: object, request: ReceivedRequest) -> bool:
        # Wait without the lock, which each request needs for its reply.
        if request.path == RENEW:
            self.renewing.set()
            self.may_renew.wait(30)
        elif not self._is_good(request):
            if (request.body or {}).get("prompt") == "late":
                self.is_late.set()
                self.may_refuse.wait(30)
            self.together.wait(30)
        return super()._answer(connection, request)  # type: ignore[arg-type]

    def _is_good(self, request: ReceivedRequest) -> bool:
        return request.headers.get("authorization") == f"Bearer access-{self.number}"

    def _reply_to(self, request: ReceivedRequest) -> Reply:
        if request.path != RENEW:
            return super()._reply_to(request) if self._is_good(request) else failed(401, "not_authenticated")
        self.renewals += 1
        if self.refusal is not None:
            return self.refusal
        # A session token works once, as on the platform.
        if request.body != {"session_token": f"session-{self.number - 1}"}:
            return failed(401, "not_authenticated")
        token = {"access_token": f"access-{self.number}", "expires_in": 600, "session_token": f"session-{self.number}"}
        return Reply([json.dumps({**token, "token_type": "Bearer", "step": "done", "user": USER}).encode()])


@contextmanager
def serving(*answers: Reply) -> Iterator[SessionServer]:
    server = SessionServer(*answers)
    server.start()
    try:
        yield server
    finally:
        server.may_renew.set()
        server.stop()
