"""What can go wrong with a swarm. All are SwarmError."""


class SwarmError(Exception):
    """The swarm cannot do it; the message says what to do next."""


class SidecarLost(SwarmError):
    """The sidecar died, or does not run at the moment. It comes back by itself; what was asked of it has to be asked again."""


class NodeMissing(SwarmError):
    """There is no Node.js, or not the packages, to run the sidecar with."""

    def __init__(self, what: str, *, hint: str) -> None:
        super().__init__(f"{what}; {hint}")
        self.hint = hint


class ConnectionClosed(SwarmError):
    """The connection is over; the message is the reason, empty when the peer just ended it."""


class RequestRefused(Exception):
    """Raised by ``on_request`` to refuse a protomux-rpc request: the caller gets code and message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
