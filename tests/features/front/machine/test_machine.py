"""What `aicli worker` does with the servers of a joined machine: a question, a choice that is kept, and a key for each server."""

import os
import pty
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from cli.machines import join, terminal_question
from cli.machines.companions import JoinedMachine, MachineAddition
from features.front.machine import part as machine
from features.front.rules import sharing
from features.front.rules.local_servers import LocalModel, LocalServer, SharedServer
from shared import errors
from shared.identity import certificates, node_keys, private_file
from shared.identity.certificates import MACHINE_LABEL, Subject
from shared.node import enrollment
from shared.node.membership_file import MembershipFile
from shared.types import AuthorityId, MeshName, Role

NOW = 1_780_000_000.0
CHAT = LocalModel(name="qwen3:8b")
VECTORS = LocalModel(name="bge-m3:latest", only_embeds=True)
OLLAMA = LocalServer(kind="ollama", title="Ollama", url="http://127.0.0.1:11434", models=(CHAT, VECTORS))
STUDIO = LocalServer(kind="lm_studio", title="LM Studio", url="http://127.0.0.1:1234/v1", models=(LocalModel(name="phi"),))
LOCKED = LocalServer(kind="vllm", title="vLLM", url="http://127.0.0.1:8000/v1", needs_key=True)
NOTHING_GIVEN: dict[str, Any] = {"share": (), "unshare": (), "server_key_file": (), "no_detect": False}


@dataclass
class Box:
    """A machine that has joined."""

    folder: join.Folder
    ca: node_keys.Authority
    #: What runs there.
    servers: tuple[LocalServer, ...] = ()
    has_models: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    authorities: tuple[AuthorityId, ...] = ()
    said: list[str] = field(default_factory=list)
    #: Keys that auth was asked to certify.
    siblings: list[str] = field(default_factory=list)
    looks: int = 0

    def join(self) -> None:
        """With a new key."""
        self.folder.key.unlink(missing_ok=True)
        private_file.create(self.folder.key, node_keys.new_seed)

    def start(self, **given: Any) -> MachineAddition:
        kept = MembershipFile(MeshName("home"), Role.WORKER, b"c", authorities=self.authorities or (self.ca.id,))
        here = JoinedMachine(
            folder=self.folder,
            kept=kept,
            environment=self.environment,
            has_models=self.has_models,
            report=self.said.append,
        )
        return machine.find(here, {**NOTHING_GIVEN, **given})

    @property
    def kept(self) -> sharing.ServersFile:
        return sharing.read(self.folder.root / "servers.json")

    def shared(self) -> dict[str, tuple[str, ...]]:
        return {server.kind: server.models for server in self.kept.servers}


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    box = Box(join.Folder(tmp_path / "worker"), node_keys.Authority(node_keys.new_authority_seed()))
    join.prepare(box.folder)
    box.join()

    def look(_root: Path, _environment: Mapping[str, str]) -> tuple[LocalServer, ...]:
        box.looks += 1
        return box.servers

    async def add_sibling(
        of: MembershipFile, key: node_keys.NodeKey, sibling: node_keys.NodeKey, name: str, report: object
    ) -> MembershipFile:
        box.siblings.append(sibling.id)
        subject = Subject(sibling.id, Role.WORKER, labels=((MACHINE_LABEL, key.id),))
        return msgspec.structs.replace(of, certificate=certificates.issue(box.ca, subject, NOW))

    monkeypatch.setattr(machine, "_look", look)
    monkeypatch.setattr(enrollment, "add_sibling", add_sibling)
    at_terminal(monkeypatch, None)
    return box


Shown = list[str]


def at_terminal(monkeypatch: pytest.MonkeyPatch, *answers: bytes | None) -> Shown:
    """Have a person at the terminal who answers each question, or nobody. Return what it shows."""
    shown: Shown = []

    @contextmanager
    def terminal() -> Iterator[int | None]:
        if answers == (None,):
            yield None
            return
        person, program = pty.openpty()
        thread = threading.Thread(target=_answer, args=(person, [each for each in answers if each], shown.append), daemon=True)
        thread.start()
        try:
            yield program
        finally:
            os.close(program)
            thread.join(timeout=10)
            os.close(person)

    monkeypatch.setattr(terminal_question, "terminal", terminal)
    return shown


def _answer(person: int, answers: list[bytes], show: Callable[[str], None]) -> None:
    text = b""
    while True:
        try:
            text += (more := os.read(person, 4096))
        except OSError:  # the program closed it
            more = b""
        if not more:
            show(text.decode())
            return
        if answers and text.endswith(b"] "):
            os.write(person, answers.pop(0))


def test_enter_shares_what_the_list_shows_and_the_rest_is_asked_one_by_one(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.servers = (OLLAMA, STUDIO)
    shown = at_terminal(monkeypatch, b"\n", b"\n")
    found = box.start().companions
    assert "Share these 2 models with the mesh? [Y/n] " in shown[0]
    assert "Also share bge-m3, an embedding model? [y/N] " in shown[0]
    assert box.shared() == {"ollama": ("qwen3:8b",), "lm_studio": ("phi",)}
    # The first one has the machine's key, so only the second one needs another.
    assert [companion.folder for companion in found] == [box.folder, box.folder.companion("lm_studio")]
    assert len(box.siblings) == 1
    written = msgspec.json.decode(Path(found[1].settings["FRONT_SERVER_FILE"]).read_bytes(), type=SharedServer)
    assert (written.kind, written.models, written.key_file) == ("lm_studio", ("phi",), "")
    assert (box.said, "FRONT_CHOICE_FILE" in found[0].settings, "FRONT_CHOICE_FILE" in found[1].settings) == ([], True, False)


def test_who_declines_is_neither_asked_nor_told_again(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.servers = (OLLAMA,)
    at_terminal(monkeypatch, b"n\n", b"n\n")
    assert box.start().companions == []
    shown = at_terminal(monkeypatch, b"\n")
    assert box.start().companions == []
    assert (shown, box.said) == ([], [])
    # But may change it.
    assert [each.name for each in box.start(share=("ollama",)).companions] == ["ollama"]
    assert box.kept.declined == ()


def test_what_is_unshared_is_asked_for_no_more(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.servers = (OLLAMA,)
    box.start(share=("ollama",))
    assert box.start(unshare=("ollama",)).companions == []
    shown = at_terminal(monkeypatch, b"\n")
    assert (box.start().companions, shown) == ([], [])
    assert (box.shared(), box.kept.declined) == ({}, ("ollama",))


def test_a_question_without_an_answer_is_asked_again(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.servers = (OLLAMA,)
    at_terminal(monkeypatch, b"\x04")
    box.start()
    shown = at_terminal(monkeypatch, b"\n", b"n\n")
    box.start()
    assert "Share it with the mesh?" in shown[0]
    assert box.shared() == {"ollama": ("qwen3:8b",)}


def test_without_a_terminal_only_what_is_named_is_shared(box: Box) -> None:
    box.servers = (OLLAMA, STUDIO)
    assert box.start().companions == []
    assert [line.partition(" runs here and isn't shared")[0] for line in box.said] == ["Ollama", "LM Studio"]
    box.said.clear()
    assert [each.name for each in box.start(share=("lm_studio",)).companions] == ["lm_studio"]
    (line,) = box.said
    assert line.startswith("Ollama runs here and isn't shared")
    # A service starts it so, and shares what was chosen before.
    box.servers = ()
    assert [each.name for each in box.start().companions] == ["lm_studio"]


def test_a_server_that_others_reach_without_a_key_comes_with_the_mend(box: Box) -> None:
    box.servers = (msgspec.structs.replace(OLLAMA, is_open_to_others=True),)
    box.start(share=("all",))
    assert box.said == ["Warning: Ollama answers everybody in your network, without a key. Start it with OLLAMA_HOST=127.0.0.1."]


def test_without_an_engine_a_machine_is_told_what_to_start_or_to_share(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(errors.BadSettings, match="this worker has no engine, and found no server") as nothing:
        box.start()
    names = ("Ollama", "LM Studio", "llama-server", "mlx_lm.server", "vLLM", "SGLang", "aicli worker --share all")
    assert [name for name in names if name not in (nothing.value.hint or "")] == []
    box.servers = (OLLAMA,)
    with pytest.raises(errors.BadSettings, match="this worker shares nothing yet; servers here: ollama"):
        box.start()
    assert box.start(share=("all",)).companions


def test_no_detect_looks_for_nothing_and_keeps_what_is_shared(box: Box) -> None:
    box.servers = (OLLAMA,)
    box.start(share=("all",))
    looks = box.looks
    found = box.start(no_detect=True)
    assert (box.looks, [each.name for each in found.companions], found.settings) == (looks, ["ollama"], {})


@pytest.mark.parametrize("backend", ["ollama", "openai", "http"])
def test_a_worker_that_serves_such_a_server_already_asks_for_none(box: Box, backend: str) -> None:
    """`aicli worker --backend ollama` would serve all models twice."""
    box.servers, box.has_models, box.environment = (OLLAMA,), True, {"INFERENCE_BACKEND": backend}
    assert box.start() == MachineAddition(companions=[], settings={})
    assert (box.looks, box.said) == (0, [])


def test_models_of_its_own_keep_the_machines_key(box: Box) -> None:
    box.servers, box.has_models = (OLLAMA,), True
    found = box.start(share=("all",))
    assert [companion.folder for companion in found.companions] == [box.folder.companion("ollama")]
    assert found.settings == {"FRONT_CHOICE_FILE": str(box.folder.root / "servers.json")}


def test_a_wrong_share_changes_nothing(box: Box) -> None:
    box.servers = (OLLAMA,)
    with pytest.raises(errors.BadRequest, match="--share vllm: there is no such server"):
        box.start(share=("ollama", "vllm"))
    assert box.shared() == {}


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("vllm", click.UsageError, "is not KIND=FILE; kinds: ollama, lm_studio"),
        ("other=key", click.UsageError, "is not KIND=FILE"),
        ("vllm=nowhere", errors.BadSettings, "--server-key-file vllm: cannot read nowhere: No such file"),
        ("vllm=empty", errors.BadSettings, "has no key"),
        ("vllm=long", errors.BadSettings, "has no key of at most 4,096 bytes"),
    ],
)
def test_a_wrong_key_file_is_refused(box: Box, monkeypatch: pytest.MonkeyPatch, text: str, kind: type[Exception], message: str) -> None:
    monkeypatch.chdir(box.folder.root)
    Path("empty").write_text("\n")
    Path("long").write_text("k" * 5000)
    with pytest.raises(kind, match=message):
        box.start(server_key_file=(text,))


def test_a_key_is_copied_because_a_service_cannot_read_its_owners_home(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "key"
    home.write_text("s3cret\n")
    box.servers = (msgspec.structs.replace(LOCKED, needs_key=False, models=(LocalModel(name="big"),)),)
    at_terminal(monkeypatch, b"\n")
    (companion,) = box.start(server_key_file=(f"vllm={home}",)).companions
    home.unlink()
    file = Path(companion.settings["FRONT_SERVER_FILE"])
    copy = Path(msgspec.json.decode(file.read_bytes(), type=SharedServer).key_file)
    assert (copy.read_text(), copy.is_relative_to(box.folder.root), copy.stat().st_mode & 0o777) == ("s3cret\n", True, 0o600)
    assert "s3cret" not in file.read_text() + (box.folder.root / "servers.json").read_text()


def test_the_key_of_a_server_is_got_once(box: Box) -> None:
    box.servers = (OLLAMA, STUDIO)
    box.start(share=("all",))
    again = box.start()
    assert len(box.siblings) == 1
    assert [node_keys.load(each.folder.key).id for each in again.companions[1:]] == box.siblings


def test_a_mesh_with_another_authority_certifies_the_same_key(box: Box) -> None:
    box.servers = (OLLAMA, STUDIO)
    box.start(share=("all",))
    box.authorities = (box.ca.id, node_keys.Authority(node_keys.new_authority_seed()).id)
    box.start()
    first, second = box.siblings
    assert first == second


def test_a_machine_that_joins_again_gets_new_keys_for_its_servers(box: Box) -> None:
    """Its others are revoked with its former key, and would stay down."""
    box.servers = (OLLAMA, STUDIO)
    box.start(share=("all",))
    box.join()
    box.start()
    first, second = box.siblings
    assert first != second
    assert node_keys.load(box.folder.companion("lm_studio").key).id == second


def test_a_damaged_choice_says_what_to_do(box: Box) -> None:
    (box.folder.root / "servers.json").write_text('{"servers": 7}')
    with pytest.raises(errors.BadSettings, match=r"cannot read .*servers\.json") as refused:
        box.start()
    assert refused.value.hint == "delete it: the worker asks again"
