"""Ollama's API at the root of `aicli serve`, where its programs expect it."""

from cli.machines import loopback
from tests.cli.machines.test_serve import Mesh, serving
from tests.testnet import until


def test_its_paths_are_at_the_root() -> None:
    for path, expected in {"/api/chat": "/ollama/api/chat", "/": "/ollama/", "/ollama/api/tags": "/ollama/api/tags"}.items():
        assert loopback.target(path) == expected


async def test_a_program_gets_answers_and_errors_in_its_form() -> None:
    mesh, notes = Mesh(), list[str]()
    async with serving(mesh) as http:
        assert (await http.post("/api/chat", json={})).content == b"one\n"
        assert [request.path for request in mesh.requests] == ["/ollama/api/chat"]
    mesh.is_away = True
    async with serving(mesh, notes) as http:
        await until(lambda: bool(notes))
        refused = await http.get("/api/tags")
        assert (refused.status_code, refused.json()["error"]) == (503, "NATS does not answer – start the stack with `make up`")
