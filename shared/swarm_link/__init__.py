"""Links over Hyperswarm: a connection between two keys that Noise has proved becomes a link when both have shown what they may be.

Each message is one write of frames. The first of each side is a HELLO with a certificate, bound to this connection by the hash
of its Noise handshake. A newcomer says nothing before the other side has shown that it is auth. An ERROR of call 0 is a
farewell: the sender closes, and says why.
"""

from shared.swarm_link.door import Refusal
from shared.swarm_link.link import SwarmLink
from shared.swarm_link.transport import Meeting, SwarmTransport

__all__ = ["Meeting", "Refusal", "SwarmLink", "SwarmTransport"]
