"""Run a conversation against a script: no socket, no clock, no randomness."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from aimesh import calls, conversations
from aimesh.actions import Action, AnswerHead, EmitPiece, OpenRequest, PauseAction, Read, Renew, WireLost
from aimesh.answers import Answer
from aimesh.conversations import CallTerms, ClientContext, Conversation
from aimesh.errors import AimeshError
from aimesh.logins import SessionLogin
from aimesh.retry_policy import RetryRules

from tests.sdk.python.scripted_server import ANSWER

T = TypeVar("T")

LOST = WireLost("reset")
JSON, EVENTS = {"content-type": "application/json"}, {"content-type": "text/event-stream; charset=utf-8"}
WHOLE = json.dumps({**ANSWER, "response": "hi"}).encode()
CALL = calls.inference("hi", {})
STREAM = calls.inference("hi", {}, stream=True)
TERMS = CallTerms(seconds=100)


@dataclass
class Try:
    """The response to one OpenRequest: a head or a loss; then pieces, or losses among them."""

    status: int = 200
    pieces: Sequence[bytes | WireLost] = ()
    headers: Mapping[str, str] = field(default_factory=lambda: EVENTS)
    #: Replaces the head.
    lost: WireLost | None = None


@dataclass
class Played:
    opened: list[OpenRequest] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    #: Access tokens for which the client wanted a new one.
    spent: list[str] = field(default_factory=list)

    @property
    def keys(self) -> list[str | None]:
        return [one.headers.get("idempotency-key") for one in self.opened]

    @property
    def last_event_ids(self) -> list[str | None]:
        return [one.headers.get("last-event-id") for one in self.opened]


class Stage:
    """Runs conversations. Time passes only in pauses and in the script's durations."""

    def __init__(
        self, *tries: Try, seconds_each: float = 0.0, api_key: str | None = "aip_live_x", login: SessionLogin | None = None
    ) -> None:
        self._tries = list(tries)
        self._seconds_each = seconds_each
        self.now = 1000.0
        self.played = Played()
        self._made = 0
        self.context = ClientContext(
            base_url="http://mesh",
            api_key=api_key,
            retry_rules=RetryRules(max_retries=2, first_pause_seconds=1.0),
            clock=lambda: self.now,
            draw=lambda: 1.0,
            make_key=self._key,
            login=login,
        )

    def run(self, conversation: Conversation[T]) -> T:
        pieces: list[bytes | WireLost] = []
        action = conversation.reply(None)
        while action is not None:
            match action:
                case OpenRequest():
                    self.played.opened.append(action)
                    self.now += self._seconds_each
                    this = self._tries.pop(0)
                    pieces = list(this.pieces)
                    action = (
                        conversation.fail(this.lost) if this.lost is not None else conversation.reply(AnswerHead(this.status, this.headers))
                    )
                case Read():
                    piece = pieces.pop(0) if pieces else b""
                    action = conversation.fail(piece) if isinstance(piece, WireLost) else conversation.reply(piece)
                case PauseAction(seconds):
                    self.played.pauses.append(seconds)
                    self.now += seconds
                    action = conversation.reply(None)
                case Renew(spent):
                    action = self._renew(conversation, spent)
                case EmitPiece(piece):
                    if piece.text:
                        self.played.texts.append(piece.text)
                    action = conversation.reply(None)
        return conversation.result

    def infer(self, terms: CallTerms = TERMS) -> Answer:
        return self.run(conversations.whole(CALL, self.context, terms))

    def stream(self, terms: CallTerms = TERMS) -> Answer:
        return self.run(conversations.streamed(STREAM, self.context, terms))

    def _renew(self, conversation: Conversation[T], spent: str) -> Action | None:
        self.played.spent.append(spent)
        login = self.context.login
        assert login is not None
        try:
            if login.is_spent(spent):
                login.session = replace(login.session, access_token=f"{spent}'")
        except AimeshError as error:
            return conversation.fail(error)
        return conversation.reply(None)

    def _key(self) -> str:
        self._made += 1
        return f"key-{self._made}"


def refusal(status: int, code: str, **headers: str) -> Try:
    body = json.dumps({"error": {"message": "no", "code": code}}).encode()
    return Try(status, [body], {**JSON, **{name.replace("_", "-"): value for name, value in headers.items()}})
