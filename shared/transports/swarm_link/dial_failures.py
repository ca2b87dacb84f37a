"""Why a peer could not be reached over Hyperswarm, in plain words. Only this file knows hyperdht's error codes."""

#: What is missing where only a relay can help; and where there is one, that it did not.
_NO_RELAY, _RELAY_FAILED = "no relay configured", "the relay did not help"

#: The codes of hyperdht (lib/errors.js) and of our sidecar. ``{relay}`` becomes one of the two above.
_WORDS = {
    "HOLEPUNCH_DOUBLE_RANDOMIZED_NATS": "no path: symmetric NAT on both sides and {relay}",
    "HOLEPUNCH_ABORTED": "no path: the NATs between us let nothing through and {relay}",
    "HOLEPUNCH_PROBE_TIMEOUT": "no path: one of the NATs did not show what kind it is, in time, and {relay}",
    "HOLEPUNCH_INVALID": "the peer answered the punching with what we do not understand: update the older one",
    "BAD_HOLEPUNCH_REPLY": "the peer answered the punching with what we do not understand: update the older one",
    "CANNOT_HOLEPUNCH": "no path: the peer's network cannot be punched through and {relay}",
    "REMOTE_NOT_HOLEPUNCHING": "no path: the peer gave up punching and {relay}",
    "REMOTE_NOT_HOLEPUNCHABLE": "no path: the peer's network cannot be punched through and {relay}",
    "REMOTE_ABORTED": "no path: the peer gave up punching and {relay}",
    "RELAY_ABORTED": "no path: the relay does not answer, or has no room",
    "PEER_NOT_FOUND": "nobody on the DHT knows where it is: it is off, or its network blocks UDP",
    "PEER_CONNECTION_FAILED": "it was there a moment ago and does not answer: it is off, or has just moved",
    "HANDSHAKE_UNFINISHED": "it did not finish the handshake: it is off, or refuses us",
    "HANDSHAKE_INVALID": "its handshake was invalid: something between us changes packets, or it is very old",
    "BAD_HANDSHAKE_REPLY": "its handshake was invalid: something between us changes packets, or it is very old",
    "SERVER_INCOMPATIBLE": "it speaks another version of Hyperswarm: update the older one",
    "SERVER_ERROR": "it failed while it took our connection; its log says why",
    "NO_PREFACE": "the connection opened and carried nothing: no path yet; it is tried again",
    "BAD_PREFACE": "whoever answers there is no node of a mesh",
    "FLOW_CONTROL": "it sent more than it may",
    "ETIMEDOUT": "it stopped answering while the connection opened",
    "ECONNRESET": "it closed the connection while it opened",
    "SUSPENDED": "our own network is asleep",
    "NODE_DESTROYED": "our own Hyperswarm is stopping",
}


def words_for(code: str, text: str, *, has_relay: bool) -> str:
    """``text`` is what the library said, for a code that a newer one has."""
    words = _WORDS.get(code)
    if words is None:
        return f"no path: {text or code}"
    return words.format(relay=_RELAY_FAILED if has_relay else _NO_RELAY)
