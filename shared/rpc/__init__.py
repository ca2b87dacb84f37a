"""RPC over links: ``serves`` marks a handler and ``RpcClient`` calls it, independently of the transport."""

from shared.rpc.calling import RpcClient, RpcReply
from shared.rpc.connection import RpcConnection
from shared.rpc.connection_pool import ConnectionPool
from shared.rpc.serving import Dispatcher, Handler, RpcCall, StreamCall, serves

__all__ = ["ConnectionPool", "Dispatcher", "Handler", "RpcCall", "RpcClient", "RpcConnection", "RpcReply", "StreamCall", "serves"]
