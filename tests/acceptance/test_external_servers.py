"""External PostgreSQL, Valkey and NATS, as docs/howto/deploy.md describes: the stack uses them and starts none itself."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import stack_plan
from stack.servers import nats_server
from tests import stacks
from tests.stacks import RunningStack, until
from tests.testnet import NatsServer, free_port


@pytest.fixture
def planned(postgres_url: str, valkey_url: str, tmp_path: Path) -> RunningStack:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    ports = {name: port for name, port in stacks.free_ports().items() if name != "NATS_PORT"}
    own = {"DATABASE_URL": postgres_url, "REDIS_URL": valkey_url, "NATS_URL": f"nats://127.0.0.1:{free_port()}"}
    home = tmp_path / "home"
    return RunningStack(home, {**kept, **ports, **own, "AIMESH_HOME": str(home), "INFERENCE_BACKEND": "echo"})


@pytest.fixture
def users_conf(planned: RunningStack, tmp_path: Path) -> Iterator[Path]:
    """The users.conf of an external NATS server; ``let_in`` fills it with the list that `aicli stack init` generates."""
    folder = tmp_path / "nats"
    folder.mkdir()
    port = int(planned.environment["NATS_URL"].rpartition(":")[2])
    config = folder / "nats.conf"
    config.write_text(nats_server.render_server(port), encoding="utf-8")
    # No one can connect before the generated list is there.
    (folder / "users.conf").write_text("users = [{ user: nobody, password: nothing }]\n", encoding="utf-8")
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([NatsServer.binary(), "-c", str(config), "-P", str(folder / "nats.pid")], stdout=log, stderr=log)
    yield folder / "users.conf"
    server.kill()
    server.wait()


def let_in(planned: RunningStack, users_conf: Path) -> None:
    users_conf.write_text((planned.place.nats / "users.conf").read_text(encoding="utf-8"), encoding="utf-8")
    os.kill(int((users_conf.parent / "nats.pid").read_text()), signal.SIGHUP)


@pytest.mark.nightly("stacks")
async def test_servers_of_ones_own_take_the_place_of_the_embedded_ones(planned: RunningStack, users_conf: Path) -> None:
    made = await planned.aicli("stack", "init")
    assert made.status == 0, made.err
    let_in(planned, users_conf)
    try:
        up = await planned.up()
        assert f"starting {', '.join(('dht', *stack_plan.SERVICES))}\n" in up.err
        assert set(await planned.programs()) == {"dht", *stack_plan.SERVICES}
        assert (await planned.aicli("infer", "one two three")).out.split() == ["one", "two", "three"]

        async def usage() -> list[dict[str, object]]:
            days: list[dict[str, object]] = (await planned.aicli("usage", "--json")).json()["days"]
            return days

        (row,) = await until(usage, what="the request is in the usage")
        assert row["request_count"] == 1
        assert (await planned.aicli("doctor")).status == 0

        # The variables are remembered, so they aren't needed again; URLs with passwords are stored in separate files.
        remembered = RunningStack(planned.home, {name: value for name, value in planned.environment.items() if not name.endswith("_URL")})
        assert "everything is already running" in (await remembered.up()).err
        shown = planned.place.settings_file.read_text(encoding="utf-8")
        assert planned.environment["DATABASE_URL"] not in shown
        # `aicli worker` can't add a worker to an external NATS server behind its administrator's back.
        refused = await remembered.aicli("worker", "--backend", "echo")
        assert (refused.status, refused.err.count("\n")) == (2, 1)
        for kept in ("postgres", "valkey"):
            assert not [path for path in (planned.home / kept).rglob("*") if path.is_file()]
    finally:
        await planned.down()


def test_the_module_that_starts_stacks_knows_every_port() -> None:
    # A new stack chooses this one.
    chosen = stack_plan.StackSettings(nats_web_port=4223)
    assert {want.variable for want in stack_plan.ports_wanted(chosen)} == set(stacks.PORTS)
