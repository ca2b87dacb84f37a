"""Answer the auth callouts of the NATS servers, and cut the connections of revoked nodes, of gateways that are too old, and those that
are too many.

Every replica of auth has the same logins. A callout goes to one of them; each of them cuts connections, because that is harmless twice.
``nats_callout`` and ``login_limits`` decide.
"""

import asyncio
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from services.auth.nodes import enrollment_rules, gateway_releases, login_limits, nats_callout
from services.auth.nodes.gateway_releases import GatewayReleases
from services.auth.nodes.login_limits import ConnectionId, LoginQueue, LoginRates, NodeConnections
from services.auth.nodes.nats_callout import Allow, AskStore, LoginRequest, LoginTrust, Refuse
from services.auth.nodes.nats_jwt import NatsIssuer
from services.auth.nodes.node_store import NodeStore
from services.auth.settings import AuthSettings
from shared import errors
from shared.api.gateway import Check
from shared.api.membership import LoginRefusal, LoginRefusals
from shared.identity import enrollment_list, node_keys
from shared.identity.trust import NEWCOMER_SECONDS
from shared.node import Node, lifecycle
from shared.protocol import topics
from shared.stores.cache import Cache
from shared.telemetry import logs
from shared.transports.nats.nats_client import NatsClient
from shared.transports.nats.server_connection import NatsMessage
from shared.types import FIRST_ROLES, Moment, NodeId, Role

#: The account of the mesh's nodes in the server's configuration.
ACCOUNT = "MESH"
MAX_REFUSALS = 1000
CALLOUTS = "$SYS.REQ.USER.AUTH"
_QUEUE = "auth"
_REFUSALS = "auth:nats-refusals"
_CAME_WITH = "auth:newcomer:"
#: The server waits 2 s for an answer.
_ANSWER_SECONDS = 1.5
_CONNECT_SECONDS = 30.0
_SWEEP_SECONDS = 60.0
#: nats-server ignores ``subs`` of a callout's answer and only has one limit for all connections, so auth cuts those over their role's.
_SUBSCRIPTIONS_SECONDS = 10.0
#: A revoked node keeps its connection so long, to hear from its peers that it was revoked. They talk to it no longer.
_LAST_WORD_SECONDS = 0.5
#: Logins with a ticket that wait for PostgreSQL.
_MAX_ASKING = 100
_MAX_QUEUED = 1000
#: Nodes that are revoked together, and whose connections the servers are asked for one by one.
_MAX_ASKED = 20
_PAGE = 256

_log = logs.get(part="nats-logins")


class _Connection(msgspec.Struct, frozen=True):
    cid: int
    start: Moment
    authorized_user: str = ""
    subscriptions: int = 0


class _Connections(msgspec.Struct, frozen=True):
    server_id: str
    total: int
    offset: int
    connections: tuple[_Connection, ...] = ()


class _Reply(msgspec.Struct, frozen=True):
    data: _Connections


class _EventServer(msgspec.Struct, frozen=True):
    id: str


class _EventClient(msgspec.Struct, frozen=True):
    id: int
    start: Moment
    user: str = ""


class _ConnectionEvent(msgspec.Struct, frozen=True):
    server: _EventServer
    client: _EventClient


_decode_connections = msgspec.json.Decoder(_Reply).decode
_decode_event = msgspec.json.Decoder(_ConnectionEvent).decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class LoginKeys:
    """The keys that the server's configuration names. All replicas share them."""

    issuer: NatsIssuer
    callout: node_keys.NodeKey
    system: node_keys.NodeKey

    @classmethod
    def load(cls, settings: AuthSettings) -> "LoginKeys | None":
        """Return None if auth does not answer callouts. Raises BadSettings."""
        files = settings.nats_issuer_key_file, settings.nats_callout_key_file, settings.nats_sys_key_file
        if not settings.uses_nats or None in files:
            return None
        issuer, callout, system = (file for file in files if file is not None)
        return cls(NatsIssuer(node_keys.load_authority(issuer)), node_keys.load(callout), node_keys.load(system))


class NatsLogins:
    """Call ``connect`` before auth's own node logs in, then run ``run`` as a task."""

    def __init__(
        self, keys: LoginKeys, settings: AuthSettings, node: Node, members: NodeStore, cache: Cache, *, releases: GatewayReleases
    ) -> None:
        self._releases = releases
        releases.end_connections = lambda nodes: self._start(self._cut_later(nodes))
        self._issuer = keys.issuer
        self._node = node
        self._members = members
        self._cache = cache
        self._enrollment_list_path = settings.enrollment_list
        self._enrolled: dict[NodeId, Role] = {}
        self._enrolled_at = 0
        #: Nodes of the list that have logged in here.
        self._with_rows: set[NodeId] = set()
        self._callouts = NatsClient(settings.nats_url, keys.callout, name="aimesh auth callout", files=settings.nats_files, leads=True)
        self._system = NatsClient(settings.nats_url, keys.system, name="aimesh auth system", files=settings.nats_files, leads=True)
        self._inbox = f"_INBOX.{node.id}"
        self._rates = LoginRates()
        self._connections = NodeConnections()
        self._logins: LoginQueue[tuple[LoginRequest, str]] = LoginQueue(most_seconds=_ANSWER_SECONDS)
        self._new_networks = node.metrics.ticket_new_networks
        self._asking: set[asyncio.Task[None]] = set()
        self._refused: asyncio.Queue[LoginRefusal] = asyncio.Queue(_MAX_QUEUED)
        self._callouts.subscribe(CALLOUTS, self._on_callout, queue=_QUEUE)
        self._system.subscribe(self._inbox, self._on_connections)
        self._system.subscribe(f"{self._inbox}.subscriptions", self._on_subscriptions)
        for event in ("CONNECT", "DISCONNECT"):
            self._system.subscribe(f"$SYS.ACCOUNT.{ACCOUNT}.{event}", self._on_event)
        assert node.node_transports.nats is not None
        node.node_transports.nats.nats.subscribe(topics.newcomer_query(node.mesh, "*"), lambda _: node.announcer.announce_soon())
        node.trust.on_revoked.append(self._cut)

    async def connect(self) -> None:
        """Raises Unavailable."""
        await self._read_enrolled()
        self._connections = NodeConnections(await self._members.list_known(login_limits.MAX_KNOWN))
        async with asyncio.TaskGroup() as tasks:
            for client in (self._callouts, self._system):
                tasks.create_task(client.connect(deadline_seconds=_CONNECT_SECONDS))
        await self._callouts.flush()

    async def _read_enrolled(self) -> None:
        """Raises Unavailable and BadSettings."""
        if self._enrollment_list_path is None:
            return
        changed_at = _changed_at(self._enrollment_list_path)
        listed = enrollment_list.read(self._enrollment_list_path)
        # The revocation list forgets a node after a week, its row does not.
        revoked = await self._members.find_revoked([each.node for each in listed.nodes])
        self._enrolled = {each.node: each.role for each in listed.nodes if each.node not in revoked}
        await self._members.add_listed_tickets(listed.tickets)
        self._enrolled_at = changed_at

    async def run(self) -> None:
        """Run until canceled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._callouts.run())
                tasks.create_task(self._system.run())
                tasks.create_task(lifecycle.every(1.0, self._begin_second))
                tasks.create_task(lifecycle.every(_SWEEP_SECONDS, self._sweep, first=0))
                tasks.create_task(lifecycle.every(_SUBSCRIPTIONS_SECONDS, self._request_subscriptions))
                tasks.create_task(self._keep_refusals())
        finally:
            for task in self._asking:
                task.cancel()
            await self._callouts.close()
            await self._system.close()

    def check(self) -> Check:
        trouble = self._callouts.trouble or self._system.trouble
        return Check("NATS logins", trouble is None, "" if trouble is None else trouble.message)

    def is_enrolled(self, node: NodeId) -> bool:
        """Return whether the operator's list has the node."""
        return node in self._enrolled

    async def came_with(self, node: NodeId, ticket_id: str) -> bool:
        """Return whether a newcomer logged in with this ticket, which is bound to networks, from one of these. Raises Unavailable."""
        return await self._cache.get(_CAME_WITH + node) == ticket_id.encode()

    async def refusals(self) -> LoginRefusals:
        """Return the newest of all replicas. Raises Unavailable."""
        entries = await self._cache.newest(_REFUSALS, most=MAX_REFUSALS)
        return LoginRefusals(tuple(msgspec.msgpack.decode(entry, type=LoginRefusal) for entry in entries))

    def _on_callout(self, message: NatsMessage) -> None:
        request = nats_callout.read_request(message.payload)
        is_first = self._is_known(request) and nats_callout.claimed_role(request, self._enrolled) in FIRST_ROLES
        is_idle = not self._logins
        self._logins.add((request, message.reply.decode()), time.monotonic(), is_first=is_first)
        if is_idle:
            asyncio.get_running_loop().call_soon(self._answer_next)

    def _is_known(self, request: LoginRequest) -> bool:
        return request.node in self._enrolled or self._connections.knows(request.node)

    def _answer_next(self) -> None:
        """Answer one login in each turn of the loop: more important ones may arrive meanwhile."""
        try:
            if (found := self._logins.take(time.monotonic())) is not None:
                self._answer_callout(*found)
        finally:
            if self._logins:
                asyncio.get_running_loop().call_soon(self._answer_next)

    def _answer_callout(self, request: LoginRequest, reply: str) -> None:
        is_known = self._is_known(request)
        if reason := self._rates.count(request.origin, request.node, is_known=is_known):
            self._answer(request, reply, Refuse(reason))
            return
        decision = self._decide(request)
        if decision == nats_callout.NOT_SIGNED:
            self._rates.distrust(request.origin, request.node)
        if isinstance(decision, AskStore):
            work = self._ask_store(request, decision)
        elif decision == nats_callout.NOT_ENROLLED and self._enrolled_at != _changed_at(self._enrollment_list_path):
            work = self._ask_again(request)
        else:
            self._answer(request, reply, decision)
            return
        if len(self._asking) >= _MAX_ASKING:
            work.close()
            self._answer(request, reply, Refuse("too many newcomers at once"))
        else:
            self._start(self._answer_later(request, reply, work))

    def _decide(self, request: LoginRequest) -> Allow | Refuse | AskStore:
        trust = LoginTrust(self._node.trust.authorities, self._node.trust.revoked, self._enrolled)
        decision = nats_callout.decide(request, trust, time.time())
        if isinstance(decision, Allow) and decision.role is Role.GATEWAY:
            reason = gateway_releases.refuse_login(request.connect_opts.name, self._releases.needed)
            return Refuse(reason) if reason else decision
        return decision

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = self._node.tasks.create_task(work)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _add_row(self, login: Allow) -> None:
        """Administrators can see and revoke the node from now on."""
        self._with_rows.add(login.node)
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._members.ensure_vouched(login.node, login.role)
        except (errors.Unavailable, TimeoutError):
            self._with_rows.discard(login.node)

    async def _answer_later(self, request: LoginRequest, reply: str, work: Coroutine[None, None, Allow | Refuse]) -> None:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                decision = await work
        except (errors.AimeshError, TimeoutError) as error:
            decision = Refuse(f"newcomers wait until PostgreSQL answers: {error}")
        self._answer(request, reply, decision)

    async def _ask_store(self, request: LoginRequest, question: AskStore) -> Allow | Refuse:
        token = question.ticket
        ticket = None if token is None else await self._members.find_ticket(token.ticket_id)
        if token is not None and ticket is None and self._enrolled_at != _changed_at(self._enrollment_list_path):
            await self._read_enrolled()  # the operator has made a new one
            ticket = await self._members.find_ticket(token.ticket_id)
        node = await self._members.find_node(request.node)
        decision = nats_callout.decide_newcomer(request, token, ticket, node, time.time())
        if isinstance(decision, Allow) and ticket is not None and ticket.networks:
            # Another replica may enroll it.
            await self._cache.set(_CAME_WITH + request.node, ticket.id, ttl_seconds=2 * NEWCOMER_SECONDS)
            network = enrollment_rules.network_of(request.address)
            if await self._members.note_ticket_network(ticket.id, network):
                self._new_networks.inc()
                _log.warning("ticket used from a new network", ticket_id=ticket.id, network=network, node_id=request.node)
        return decision

    async def _ask_again(self, request: LoginRequest) -> Allow | Refuse:
        await self._read_enrolled()
        decision = self._decide(request)
        assert not isinstance(decision, AskStore)
        return decision

    def _answer(self, request: LoginRequest, reply: str, decision: Allow | Refuse) -> None:
        now, user, server = int(time.time()), request.user_nkey, request.server_id.id
        if isinstance(decision, Allow):
            rights = topics.permissions(self._node.mesh, decision.role, decision.node)
            jwt = self._issuer.grant(user, decision.node, ACCOUNT, rights, now=now, until=decision.until)
            body = self._issuer.answer(user, server, now=now, jwt=jwt)
            self._node.metrics.nats_logins.labels(role=decision.role, result="ok").inc()
            if decision.until is None and decision.node not in self._with_rows:
                self._start(self._add_row(decision))
        else:
            body = self._issuer.answer(user, server, now=now, error=decision.reason)
            self._node.metrics.nats_logins.labels(role="", result="refused").inc()
            self._note(request, decision.reason)
        self._callouts.publish(reply, body)

    def _note(self, request: LoginRequest, reason: str) -> None:
        # The server names the proxy in front of it.
        where = "HTTPS" if request.is_over_web else request.address[:64]
        refusal = LoginRefusal(request.node[:64], where, reason[:200], datetime.now(UTC))
        with suppress(asyncio.QueueFull):  # someone retries all the time; the newest are enough
            self._refused.put_nowait(refusal)

    async def _keep_refusals(self) -> None:
        while True:
            refusal = await self._refused.get()
            with suppress(errors.Unavailable):
                await self._cache.append(_REFUSALS, msgspec.msgpack.encode(refusal), most=MAX_REFUSALS)

    async def _begin_second(self) -> None:
        self._rates.clear()

    async def _sweep(self) -> None:
        # Two lists without a connection: its server is gone, or we missed its end.
        self._connections.forget(time.monotonic() - 2.5 * _SWEEP_SECONDS)
        self._request_connections("PING", {})

    async def _request_subscriptions(self) -> None:
        self._request_connections("PING", {"sort": "subs"}, inbox=f"{self._inbox}.subscriptions")

    def _cut(self, nodes: frozenset[NodeId]) -> None:
        """Let no server admit these nodes again, and cut their connections soon."""
        self._enrolled = {node: role for node, role in self._enrolled.items() if node not in nodes}
        self._start(self._cut_later(nodes))

    async def _cut_later(self, nodes: frozenset[NodeId]) -> None:
        """Ask every server for the connections of these nodes; ``_on_connections`` cuts them."""
        await asyncio.sleep(_LAST_WORD_SECONDS)
        # A list of all connections is cheaper than many questions.
        for which in [{"user": node} for node in nodes] if len(nodes) <= _MAX_ASKED else [{}]:
            self._request_connections("PING", which)

    def _request_connections(self, server: str, which: Mapping[str, str | int], *, inbox: str = "") -> None:
        question = {"auth": True, "acc": ACCOUNT, "limit": _PAGE, **which}
        self._system.publish(f"$SYS.REQ.SERVER.{server}.CONNZ", _encode(question), reply=inbox or self._inbox)

    def _end_connection(self, connection: ConnectionId) -> None:
        self._system.publish(f"$SYS.REQ.SERVER.{connection.server}.KICK", _encode({"cid": connection.number}), reply=self._inbox)

    def _report(self, node: NodeId, connection: ConnectionId, began: datetime) -> None:
        if oldest := self._connections.report(node, connection, began, time.monotonic()):
            _log.warning("ended the oldest of too many connections", node_id=node, most=login_limits.MAX_CONNECTIONS)
            self._end_connection(oldest)

    def _on_event(self, message: NatsMessage) -> None:
        event = _decode_event(message.payload)
        node, connection = NodeId(event.client.user), ConnectionId(event.server.id, event.client.id)
        if message.subject.endswith(b".DISCONNECT"):
            self._connections.close(node, connection)
        else:
            self._report(node, connection, event.client.start)

    def _on_subscriptions(self, message: NatsMessage) -> None:
        found = _decode_connections(message.payload).data
        for each in found.connections:
            if each.subscriptions > min(topics.MAX_SUBSCRIPTIONS.values()) and len(self._asking) < _MAX_ASKING:
                self._start(
                    self._check_subscriptions(NodeId(each.authorized_user), ConnectionId(found.server_id, each.cid), each.subscriptions)
                )

    async def _check_subscriptions(self, node: NodeId, connection: ConnectionId, subscriptions: int) -> None:
        """End a connection that has more subscriptions than its role may have."""
        role = self._enrolled.get(node)
        if role is None:
            with suppress(errors.Unavailable, TimeoutError):
                async with asyncio.timeout(_ANSWER_SECONDS):
                    row = await self._members.find_node(node)
                    role = None if row is None else row.role
        if role is not None and subscriptions > topics.MAX_SUBSCRIPTIONS[role]:
            _log.warning("ended a connection with too many subscriptions", node_id=node, role=role, subscriptions=subscriptions)
            self._end_connection(connection)

    def _on_connections(self, message: NatsMessage) -> None:
        try:
            found = _decode_connections(message.payload).data
        except msgspec.MsgspecError:
            return  # the answer to a KICK
        for each in found.connections:
            node, connection = NodeId(each.authorized_user), ConnectionId(found.server_id, each.cid)
            if node in self._node.trust.revoked:
                _log.warning("cut off a revoked node", node_id=node)
                self._end_connection(connection)
            elif self._releases.is_too_old(node):
                self._end_connection(connection)
            else:
                self._report(node, connection, each.start)
        if found.offset + len(found.connections) < found.total and found.connections:
            self._request_connections(found.server_id, {"offset": found.offset + len(found.connections)})


def _changed_at(path: Path | None) -> int:
    try:
        return 0 if path is None else path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
