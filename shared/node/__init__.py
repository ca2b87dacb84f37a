"""A node of the mesh: ``run`` is the life of a service's process, ``member`` a serving node, ``client_node`` a calling one."""

from typing import TYPE_CHECKING

from shared.node.client_node import ClientNode, ClientSettings, client
from shared.node.settings import NodeSettings, PublicNodeSettings

if TYPE_CHECKING:
    from shared.node.member import Node, Service
    from shared.node.program import run

__all__ = ["ClientNode", "ClientSettings", "Node", "NodeSettings", "PublicNodeSettings", "Service", "client", "run"]


def __getattr__(name: str) -> object:
    # Imported on first use: a service's parts take a quarter of a second to import, and `aicli` does not need them.
    if name in {"Node", "Service"}:
        from shared.node import member  # noqa: PLC0415

        return getattr(member, name)
    if name == "run":
        from shared.node.program import run  # noqa: PLC0415

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
