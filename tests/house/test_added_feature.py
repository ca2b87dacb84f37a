"""A feature is added to a copy of the tree, used, and taken away, as CONTRIBUTING.md says: no other file changes by hand."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import people
from tests.services.web.browser import Browser
from tests.stacks import HEAD, REPOSITORY, Release, RunningStack, stack, until

HELLO = Path(__file__).with_name("hello")
SETTINGS = {"INFERENCE_BACKEND": "echo", "HYPERSWARM": "off", "HELLO_GREETING": "Good day"}
#: What the copy needs and git doesn't have, or what nothing of this changes.
LINKED = ("sdk", "tests", "bench", "services/web/npm/node_modules", "packages")


@pytest.fixture
def copy(tmp_path: Path) -> Release:
    """The tree, with the feature."""
    for name in ("services", "features", "shared", "cli", "stack", "tools", "deploy", "docs"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    for name in ("compose.yaml", "pyproject.toml", "Makefile", "CONTRIBUTING.md", "README.md"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    for name in LINKED:
        (tmp_path / name).symlink_to(REPOSITORY / name)
    shutil.copytree(HELLO, tmp_path / "features" / "hello", ignore=shutil.ignore_patterns("__pycache__"))
    return Release(HEAD.python, tmp_path)


def run(release: Release, *words: str) -> str:
    done = subprocess.run([release.python, "-m", *words], cwd=release.folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def use(running: RunningStack) -> None:
    """Use all that the feature adds, as a person and as an operator."""
    assert " hello," in (await running.aicli("--version")).out
    for number, name in enumerate(("Ann", "Bob"), start=1):
        assert (await running.aicli("hello", name)).out == f"Good day, {name}! ({number})\n"
    async with people.api_client(running) as api_client, running.http(service="web") as http:
        ann = await api_client.register("ann")
        browser = Browser(http)
        http.headers["origin"] = running.url("web")
        assert (await browser.get("/hello")).status_code == 303, "a visitor has to sign in"
        assert (await browser.sign_in(ann.username, ann.password)).status_code == 303
        assert "<p>Good day, you!</p>" in (await browser.get("/hello")).text
    async with running.http(ann.key.secret) as http:
        called = await http.post("/rpc/gateway.sayHello", json={"name": "Eve"})
        assert called.json() == {"text": "Good day, Eve!", "times": 2}
    assert await running.metric("gateway", "ai_platform_hello_total") == 4
    assert re.search(r'"features": \[[^]]*"hello"', running.log("gateway"))

    async def is_told() -> bool:
        listed = await running.aicli("admin", "audit", "list", "--action", "hello.say", "--json")
        return listed.out.count('"hello.say"') == 4

    await until(is_told, seconds=20, what="the acts are in the audit log")


async def test_a_feature_is_added_used_and_taken_away(copy: Release) -> None:
    run(copy, "tools.docs")
    assert "HELLO_GREETING: ${HELLO_GREETING:-}" in (copy.folder / "compose.yaml").read_text(encoding="utf-8")
    assert "features/hello/README.md" in (copy.folder / "docs/architecture.md").read_text(encoding="utf-8")
    for page, word in {"rpc": "gateway.sayHello", "cli": "aicli hello", "metrics": "ai_platform_hello_total", "audit": "hello.say"}.items():
        assert word in (copy.folder / f"docs/reference/{page}.md").read_text(encoding="utf-8"), page
    async with stack(copy, **SETTINGS) as running:
        await use(running)
        assert (await running.aicli("stack", "down")).status == 0
        shutil.rmtree(copy.folder / "features" / "hello")
        run(copy, "tools.docs")
        assert not [path for path in copy.folder.rglob("*.md") if "sayHello" in path.read_text(encoding="utf-8")]
        await running.up()
        assert "hello" not in (await running.aicli("--version")).out
        assert (await running.aicli("infer", "It works without")).out.strip() == "It works without"
        assert (await running.aicli("hello")).status == 2
        async with running.http(running.api_key) as http:
            assert (await http.post("/rpc/gateway.sayHello", json={})).status_code == 404
        async with running.database("gateway") as database:
            assert await database.fetchval("SELECT max(times) FROM hello") == 2, "what it has stored stays"
            assert await database.fetchval("SELECT name FROM feature_migrations WHERE feature = 'hello'") == "0001_pre_hello.sql"
