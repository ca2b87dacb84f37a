"""The errors of a swarm. All are SwarmError, except RequestRefused."""


class SwarmError(Exception):
    """The swarm cannot do this; the message says what to do next."""


class SidecarLost(SwarmError):
    """The sidecar died or is not running. It restarts automatically; repeat the call."""


class NodeMissing(SwarmError):
    """Node.js or the packages of the sidecar are missing."""

    def __init__(self, what: str, *, hint: str) -> None:
        super().__init__(f"{what}; {hint}")
        self.hint = hint


class ConnectionClosed(SwarmError):
    """The connection has ended. The message is the reason, empty if the peer simply closed it."""


class RequestRefused(Exception):
    """Raised by ``on_request`` to refuse a protomux-rpc request. The caller gets code and message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
