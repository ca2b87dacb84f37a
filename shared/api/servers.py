"""gateway and inference: the servers of the configuration, which workers that may reach them take, try and serve."""

from typing import Annotated

from msgspec import Meta

from shared.api.method import PEOPLE, Body, Method
from shared.config_documents import MAX_SERVERS, ServerKind
from shared.types import ModelName, Role

#: What a worker without servers announces: it waits for an administrator.
NO_SERVER = "no server was added: see `aicli models add-server`"


class OpenServer(Body, frozen=True):
    """A server with its key, for the operator's workers."""

    name: str
    url: str
    kind: ServerKind
    key: str | None = None
    models: tuple[str, ...] = ()
    context: int | None = None
    tools: bool | None = None


class TriedServer(Body, frozen=True):
    #: Who gets the prompts; empty if they stay on the operator's machines.
    provider: str
    #: If they stay there: to whom it forwards those of some models.
    forwards_to: tuple[str, ...] = ()


class ServerState(Body, frozen=True):
    """A server at one worker."""

    name: str
    models: tuple[ModelName, ...] = ()
    #: Why its models aren't served; empty if they are.
    trouble: str = ""


class TakeServers(Body, frozen=True):
    #: The worker's, which shows that it is the operator's.
    certificate: bytes
    #: Of the servers that it has; -1 for none.
    revision: int
    states: Annotated[tuple[ServerState, ...], Meta(max_length=MAX_SERVERS)] = ()


class TakenServers(Body, frozen=True):
    revision: int
    #: None if the worker has them.
    servers: Annotated[tuple[OpenServer, ...], Meta(max_length=MAX_SERVERS)] | None = None


class ListServers(Body, frozen=True):
    """For administrators."""


class ServerRow(Body, frozen=True, omit_defaults=False):
    name: str
    url: str
    kind: ServerKind
    has_key: bool
    models: tuple[ModelName, ...]
    #: Workers that serve them.
    workers: int
    #: Why a worker doesn't; empty if all do.
    trouble: str


class ServerRows(Body, frozen=True):
    servers: tuple[ServerRow, ...]


list_servers = Method("gateway.listServers", ListServers, ServerRows, callers=PEOPLE)
take_servers = Method("gateway.takeServers", TakeServers, TakenServers, callers={Role.WORKER})
try_server = Method("inference.tryServer", OpenServer, TriedServer, callers={Role.GATEWAY})
