"""Links over Hyperswarm: a connection between two keys that Noise has proved becomes a link when both have shown what they may be.

Each message is one write of frames. The first of each side is a HELLO with a certificate, bound to this connection by the hash
of its Noise handshake. A newcomer says nothing before the other side has shown that it is auth. An ERROR of call 0 is a
farewell: the sender closes, and says why.
"""

from shared.transports.swarm_link.handshake import HandshakeRefusal
from shared.transports.swarm_link.swarm_link import SwarmLink
from shared.transports.swarm_link.swarm_transport import MeetingTopics, SwarmTransport

__all__ = ["HandshakeRefusal", "MeetingTopics", "SwarmLink", "SwarmTransport"]
