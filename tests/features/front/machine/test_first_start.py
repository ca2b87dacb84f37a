"""One line and one Enter, with the real programs: `aicli worker --join` on a machine where Ollama runs."""

import os
import sys
from pathlib import Path

import pytest

from cli.machines import join
from features.front.rules import sharing
from shared.identity import node_keys, private_file, tickets
from shared.node import membership_file
from shared.node.membership_file import MembershipFile
from shared.types import MeshName, Role
from tests.cli.machines.test_model_offer import at_a_terminal
from tests.features.front import other_ports


@pytest.fixture
def folder(tmp_path: Path) -> join.Folder:
    """Of a worker that has joined with a ticket: joining with it again calls nobody."""
    folder = join.Folder(tmp_path / "state")
    join.prepare(folder)
    private_file.create(folder.key, node_keys.new_seed)
    folder.ticket_id.write_text("t1")
    return folder


def test_enter_shares_what_runs_there(folder: join.Folder) -> None:
    ca = node_keys.Authority(node_keys.new_authority_seed())
    membership_file.save(folder.membership, MembershipFile(MeshName("home"), Role.WORKER, b"c", authorities=(ca.id,)))
    ticket = tickets.render(tickets.Ticket(1, "t1", bytes(32), node_keys.raw_of(ca.id), MeshName("home")))
    ports, environment = other_ports.choose(folder.root.parent)
    environment |= {"PATH": os.environ["PATH"], "HOME": str(folder.root.parent)}
    command = [sys.executable, "-m", "cli.main", "worker", "--join", "-", "--no-serve", "--state", str(folder.root)]
    with other_ports.standin("ollama_standin", ports["ollama"]):
        shown = at_a_terminal(command, environment, ticket.encode(), b"\n", question=b"] ").decode()
        assert "Ollama runs here, with 4 models to share:" in shown
        assert "elsewhere: gpt-oss:120b-cloud" in shown
        assert "Share these 4 models with the mesh? [Y/n] " in shown
        (server,) = sharing.read(folder.root / "servers.json").servers
        assert (server.url, len(server.models)) == (f"http://127.0.0.1:{ports['ollama']}", 4)
        # Nothing is asked again, and a model of its own isn't offered beside it.
        assert "[Y/n]" not in at_a_terminal(command, environment, ticket.encode(), b"").decode()
