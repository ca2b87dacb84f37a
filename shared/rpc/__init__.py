"""RPC over links: ``serves`` marks a handler, ``Client`` calls one, and neither knows what carries the frames."""

from shared.rpc.calling import Answer, Client
from shared.rpc.connection import Connection
from shared.rpc.pool import Pool
from shared.rpc.serving import Call, Dispatcher, Handler, StreamCall, serves

__all__ = ["Answer", "Call", "Client", "Connection", "Dispatcher", "Handler", "Pool", "StreamCall", "serves"]
