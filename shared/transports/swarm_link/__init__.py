"""Links over Hyperswarm: a connection between two keys proved by Noise becomes a link when both sides have shown their roles.

Each message is one write of frames. Each side's first frame is a HELLO with a certificate, bound to this connection by its Noise handshake
hash. A newcomer says nothing before the peer has proved to be auth. An ERROR for call 0 means that the sender closes the link, and why.
"""

from shared.transports.swarm_link.handshake import HandshakeRefusal
from shared.transports.swarm_link.swarm_link import SwarmLink
from shared.transports.swarm_link.swarm_transport import MeetingTopics, SwarmTransport

__all__ = ["HandshakeRefusal", "MeetingTopics", "SwarmLink", "SwarmTransport"]
