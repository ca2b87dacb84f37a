"""A member of the mesh: ``run`` is the whole life of a service's process, ``member`` one node of it, ``client_node`` a caller's."""

from typing import TYPE_CHECKING

from shared.node.client_node import ClientNode, ClientSettings, client
from shared.node.settings import NodeSettings, PublicNodeSettings

if TYPE_CHECKING:
    from shared.node.member import Node, Service
    from shared.node.program import run

__all__ = ["ClientNode", "ClientSettings", "Node", "NodeSettings", "PublicNodeSettings", "Service", "client", "run"]


def __getattr__(name: str) -> object:
    # Loaded when first used: `aicli` needs only ``client_node``, and a service's parts take a quarter of a second to import.
    if name in {"Node", "Service"}:
        from shared.node import member  # noqa: PLC0415

        return getattr(member, name)
    if name == "run":
        from shared.node.program import run  # noqa: PLC0415

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
