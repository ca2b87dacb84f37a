"""What a storm adds to its faults: odd items in every loop of the replicas, policies that must hold, a model that must stay private, and
work of features, whose items are odd too.

async with oddities.opened(world, folder) as odd:
    … replicas with words(service) and odd.settings …
    await odd.run(http, ends_at)
    wrong = await odd.judge()
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec

from shared.api import auth, membership
from shared.models import manifest
from shared.types import Credential, ModelName, Role, UserRole
from tests import feature_parts, gguf_files, people, replicas
from tests.chaos import clients, odd_service, thief
from tests.chaos.world import World
from tests.gguf_files import LlamaShape
from tests.people import Person
from tests.replicas import Replica

#: How often a key asks that may not.
ASK_SECONDS = 0.5
PRIVATE = ModelName("companybot")
_SHAPE = LlamaShape(layers=1, embedding=64, heads=2, kv_heads=1, feed_forward=128, vocabulary=256, context=256)
#: What a gateway says to a key whose policy allows another model alone, and to one whose policy it can't read.
FORBIDDEN, UNREADABLE = "unknown_model", "config_unreadable"
#: Appends a policy that no gateway reads.
_ADD_UNREADABLE = """
WITH next AS (UPDATE config_revision SET revision = revision + 1 RETURNING revision),
added AS (INSERT INTO config_versions (kind, name, version, revision, body, origin)
    SELECT 'policy', $1, 1, revision, '{"of_a_later_release": true}', 'applied' FROM next RETURNING name)
INSERT INTO config_current (kind, name, version) SELECT 'policy', name, 1 FROM added
"""
_CURRENT = (
    "SELECT kind, name, version, body, origin FROM config_current JOIN config_versions USING (kind, name, version) ORDER BY kind, name"
)


@dataclass(slots=True)
class Oddities:
    world: World
    folder: Path
    thief: Replica
    #: By the code that they get.
    refused: dict[str, Person]
    buyer: Person
    documents: list[tuple[Any, ...]]
    #: How their requests ended, by the same code.
    ends: dict[str, Counter[str]] = field(default_factory=dict)
    #: See ``tests/features/*/chaos/oddities.py``.
    of_features: list[Any] = field(default_factory=lambda: [part.ODD() for part in feature_parts.modules("chaos.oddities")])
    _http: httpx.AsyncClient | None = None

    @property
    def settings(self) -> dict[str, str]:
        return settings(self.folder)

    async def run(self, http: httpx.AsyncClient, ends_at: float) -> None:
        """Ask with keys that may not, and let features work, until then."""
        self._http = http
        async with asyncio.TaskGroup() as tasks:
            for code, person in self.refused.items():
                self.ends[code] = Counter()
                tasks.create_task(self._ask(http, person, self.ends[code], ends_at))
            for each in self.of_features:
                tasks.create_task(each.run(http, _headers(self.buyer), ends_at))

    async def _ask(self, http: httpx.AsyncClient, person: Person, ends: Counter[str], ends_at: float) -> None:
        body = {"model": clients.MODEL, "messages": [{"role": "user", "content": "hi"}]}
        while time.monotonic() < ends_at:
            try:
                answer = await http.post("/v1/chat/completions", json=body, headers=_headers(person))
                code = "answered" if answer.status_code == 200 else str(answer.json()["error"].get("aimesh_code", answer.status_code))
            except (httpx.HTTPError, ValueError, LookupError, AttributeError) as error:
                code = type(error).__name__
            ends[code] += 1
            await asyncio.sleep(ASK_SECONDS)

    def end(self) -> None:
        """From now on no item is odd."""
        _odd_file(self.folder).rename(_odd_file(self.folder, ended=True))

    # --- the judge

    @property
    def odd(self) -> Counter[str]:
        """Return how many items of each kind were odd."""
        files = (_odd_file(self.folder), _odd_file(self.folder, ended=True))
        return Counter(kind for file in files if file.exists() for kind in file.read_text(encoding="ascii").split())

    def describe(self) -> str:
        return f"odd items: {dict(self.odd.most_common())}; of other kinds none"

    async def judge(self) -> list[str]:
        """Wait for what features do, and return what was wrong."""
        wrong = [f"a key that must get {code} got {dict(ends)}" for code, ends in self.ends.items() if ends["answered"] or ends[code] < 10]
        stolen = Counter((self.folder / "theft").read_text(encoding="ascii").splitlines())
        if any(said.startswith(thief.READ) for said in stolen):
            wrong.append(f"a private model was read: {dict(stolen)}")
        missing = [way for way in thief.WAYS if stolen[f"{thief.REFUSED} {way}"] < 10]
        if missing:
            wrong.append(f"the thief was hardly refused {missing}: {dict(stolen)}")
        if (now := await _read_documents(self.world)) != self.documents:
            wrong.append(f"policies changed: {[row for row in now if row not in self.documents]}")
        if not self.odd:
            wrong.append("no item was odd")
        assert self._http is not None
        for each in self.of_features:
            wrong += await each.judge(self._http, _headers(self.buyer))
        return wrong


def words(service: str) -> tuple[str, ...]:
    return ("-m", odd_service.__name__, service)


def settings(folder: Path) -> dict[str, str]:
    return {odd_service.ODD_ITEMS: str(_odd_file(folder))}


@asynccontextmanager
async def opened(world: World, folder: Path) -> AsyncIterator[Oddities]:
    """Restrict keys, push a private model, and let somebody's machine join that wants it."""
    _odd_file(folder).touch()
    async with people.api_client(world.stack) as api_client:
        refused = {code: await api_client.register(code.replace("_", "")) for code in (FORBIDDEN, UNREADABLE)}
        buyer, developer, owner = [await api_client.register(name) for name in ("buyer", "developer", "owner")]
        for person, role in ((developer, UserRole.DEVELOPER), (owner, UserRole.NODE_OWNER)):
            asked = auth.SetRole(person.username, role)
            await api_client.mesh.rpc.call(auth.set_role, asked, credential=world.stack.api_key)
        pusher = (await api_client.make_key(developer, "pushes")).secret
        wanted = membership.CreateTicket(Role.WORKER, owner=owner.username)
        ticket = await api_client.mesh.rpc.call(membership.create_ticket, wanted, credential=world.stack.api_key)
    await _forbid(world, refused[FORBIDDEN], folder)
    async with world.stack.database("gateway") as database:
        await database.execute(_ADD_UNREADABLE, f"key:{refused[UNREADABLE].key.id}")
    theft = thief.Theft(str(folder / "theft"), PRIVATE, await _push(world, pusher, folder))
    ticket_file = folder / "thief.ticket"
    ticket_file.touch(mode=0o600)
    ticket_file.write_text(ticket.ticket, encoding="utf-8")
    variables = {"JOIN_TICKET_FILE": str(ticket_file), thief.THEFT: msgspec.json.encode(theft).decode(), **settings(folder)}
    documents = await _read_documents(world)
    async with replicas.replica(
        world.stack, "inference", folder=folder, name="thief", settings=variables, words=("-m", thief.__name__)
    ) as running:
        await running.ready()
        yield Oddities(world, folder, running, refused, buyer, documents)


def _odd_file(folder: Path, *, ended: bool = False) -> Path:
    return folder / ("odd-items.ended" if ended else "odd-items")


def _headers(person: Person) -> dict[str, str]:
    return {"authorization": f"Bearer {person.key.secret}"}


async def _forbid(world: World, person: Person, folder: Path) -> None:
    file = folder / "policies.yaml"
    file.write_text(json.dumps({"policies": {f"key:{person.key.id}": {"models": ["another"]}}}), encoding="utf-8")
    done = await world.stack.aicli("admin", "config", "apply", "--file", str(file))
    assert done.status == 0, done


async def _push(world: World, key: Credential, folder: Path) -> tuple[str, str]:
    """Return the digests of the weights and the manifest."""
    model = folder / "private.gguf"
    await asyncio.to_thread(gguf_files.write_llama, model, _SHAPE, weights="q8_0", seed=7)
    done = await world.stack.aicli("models", "push", str(model), PRIVATE, "--json", AICLI_API_KEY=key)
    assert done.status == 0, done
    return manifest.digest_of(await asyncio.to_thread(model.read_bytes)), done.json()["digest"]


async def _read_documents(world: World) -> list[tuple[Any, ...]]:
    async with world.stack.database("gateway") as database:
        return [tuple(row) for row in await database.fetch(_CURRENT)]
