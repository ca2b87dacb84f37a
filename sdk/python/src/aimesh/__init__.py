"""Client for aimesh, a self-hosted platform for AI inference.

import aimesh

with aimesh.Client() as client:
    print(client.inference("Say hello").text)
"""

from aimesh.answers import (
    Allowance,
    Answer,
    AnswerPiece,
    ApiKey,
    Budget,
    Credits,
    Embeddings,
    Limit,
    LogProbability,
    Model,
    NewApiKey,
    Quota,
    Session,
    ToolCall,
    Usage,
    UsageDay,
    UsageReport,
    User,
)
from aimesh.async_client import AsyncClient, AsyncKeys, AsyncStream
from aimesh.calls import KeyLimits, Message, Options
from aimesh.client import Client, Keys, Stream
from aimesh.errors import (
    AimeshError,
    AlreadyExists,
    AnswerBroken,
    AnswerGone,
    BadRequest,
    BudgetExhausted,
    Cancelled,
    ConfirmationNeeded,
    Conflict,
    ConnectionFailed,
    ContextExceeded,
    DeadlineExceeded,
    IdempotencyConflict,
    InProgress,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    Overloaded,
    ProtocolError,
    RateLimited,
    SecondFactorNeeded,
    ServerFailed,
    SessionEnded,
    TooLarge,
    Unavailable,
    UnknownModel,
)
from aimesh.version import __version__

__all__ = [
    "AimeshError", "Allowance", "AlreadyExists", "Answer", "AnswerBroken", "AnswerGone", "AnswerPiece", "ApiKey", "AsyncClient",
    "AsyncKeys", "AsyncStream", "BadRequest", "Budget", "BudgetExhausted", "Cancelled", "Client", "ConfirmationNeeded", "Conflict",
    "ConnectionFailed", "ContextExceeded", "Credits", "DeadlineExceeded", "Embeddings", "IdempotencyConflict", "InProgress",
    "KeyLimits", "Keys", "Limit", "LogProbability", "Message", "Model", "NewApiKey", "NotAllowed", "NotAuthenticated", "NotFound",
    "Options", "Overloaded", "ProtocolError", "Quota", "RateLimited", "SecondFactorNeeded", "ServerFailed", "Session", "SessionEnded",
    "Stream", "TooLarge", "ToolCall", "Unavailable", "UnknownModel", "Usage", "UsageDay", "UsageReport", "User", "__version__",
]  # fmt: skip
