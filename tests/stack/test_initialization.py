import base64
from pathlib import Path

import pytest

from shared import errors
from shared.identity import credentials, enrollment_list, node_keys
from shared.types import Role
from stack import initialization, secret_files, stack_plan
from stack.servers import nats_server
from stack.stack_home import StackHome


def _contents(home: StackHome) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(home.root.rglob("*")) if path.is_file()}


def test_initialization_is_idempotent(home: StackHome, tmp_path: Path) -> None:
    assert len(initialization.ensure(home, {}, tmp_path).made) == len(secret_files.SECRETS) + len(secret_files.NODES)
    before = _contents(home)
    assert initialization.ensure(home, {}, tmp_path).made == []
    assert _contents(home) == before


def test_files_are_private(home: StackHome, tmp_path: Path) -> None:
    initialization.ensure(home, {"HF_TOKEN": "sk-x"}, tmp_path)
    for path in [home.root, *home.root.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_missing_secret_is_created_and_others_are_kept(home: StackHome, tmp_path: Path) -> None:
    initialization.ensure(home, {}, tmp_path)
    before = _contents(home)
    (home.secrets / "key_pepper").unlink()
    (home.secrets / "web_secret").chmod(0o644)
    assert initialization.ensure(home, {}, tmp_path).made == ["key_pepper"]
    after = _contents(home)
    assert {path for path in after if after[path] != before[path]} == {home.secrets / "key_pepper"}
    assert (home.secrets / "web_secret").stat().st_mode & 0o777 == 0o600


def test_secrets_are_long_and_distinct(home: StackHome, tmp_path: Path) -> None:
    initialization.ensure(home, {}, tmp_path)
    values = [secret_files.read(home, name) for name in secret_files.SECRETS]
    values += [home.key(name).read_text() for name in secret_files.NODES]
    assert len(set(values)) == len(values)
    assert min(len(value) for value in values) >= 29
    assert len(base64.b64decode(secret_files.read(home, "data_key"))) == 32
    assert credentials.kind_of(secret_files.read(home, "admin_key")) == "adm"


def test_invalid_settings_are_not_stored(home: StackHome, tmp_path: Path) -> None:
    initialization.ensure(home, {"WEB_SERVICE_PORT": "4000"}, tmp_path)
    with pytest.raises(errors.BadSettings, match="WEB_SERVICE_PORT"):
        initialization.ensure(home, {"WEB_SERVICE_PORT": "http"}, tmp_path)
    assert initialization.ensure(home, {}, tmp_path).settings.web_port == 4000


def test_port_of_the_echo_worker_is_chosen_once(home: StackHome, tmp_path: Path) -> None:
    first = initialization.ensure(home, {"AIMESH_ECHO": "1"}, tmp_path).settings
    assert first.echo_port is not None
    assert initialization.ensure(home, {}, tmp_path).settings == first


def test_added_nodes_survive_another_init(home: StackHome, tmp_path: Path) -> None:
    settings = initialization.ensure(home, {}, tmp_path).settings
    key = nats_server.add_node(home, settings.mesh, "worker-2", Role.WORKER)
    assert nats_server.add_node(home, settings.mesh, "worker-2", Role.WORKER) == key
    initialization.ensure(home, {}, tmp_path)
    assert node_keys.load(key).id in home.enrollment.read_text()
    with pytest.raises(errors.BadSettings, match="already the name of a worker"):
        nats_server.add_node(home, settings.mesh, "worker-2", Role.GATEWAY)


def test_older_home_gets_what_the_metrics_role_needs(home: StackHome) -> None:
    initialization.ensure(home, {}, home.root)
    before = (home.secrets / "postgres_auth").read_text()
    (home.secrets / "postgres_metrics").unlink()
    stack_plan.database_url_file(home, "metrics").unlink()
    assert initialization.ensure(home, {}, home.root).made == ["postgres_metrics"]
    assert secret_files.read(home, "postgres_metrics") in stack_plan.database_url_file(home, "metrics").read_text()
    assert (home.secrets / "postgres_auth").read_text() == before


def test_a_second_start_keeps_nodes_and_keys_and_names_no_node_to_a_server_that_asks(home: StackHome, tmp_path: Path) -> None:
    settings = initialization.ensure(home, {}, tmp_path).settings
    key = nats_server.add_node(home, settings.mesh, "gpu-box", Role.WORKER)
    before = enrollment_list.read(home.enrollment).nodes
    keys = {path.name: path.read_bytes() for path in home.keys.iterdir()}
    initialization.ensure(home, {}, tmp_path)
    assert set(enrollment_list.read(home.enrollment).nodes) == set(before)
    assert node_keys.load(key).id in {node.node for node in before}
    assert {path.name: path.read_bytes() for path in home.keys.iterdir()} == keys
    users = (home.nats / "users.conf").read_bytes()
    nats_server.add_node(home, settings.mesh, "another", Role.GATEWAY)
    initialization.ensure(home, {}, tmp_path)
    assert (home.nats / "users.conf").read_bytes() == users


def test_a_static_list_of_nats_users_for_a_server_that_cannot_ask(home: StackHome, tmp_path: Path) -> None:
    settings = initialization.ensure(home, {"NATS_AUTH": "users"}, tmp_path).settings
    key = nats_server.add_node(home, settings.mesh, "gpu-box", Role.WORKER, settings.nats_admission)
    users = (home.nats / "users.conf").read_text()
    assert f"# gpu-box: worker\n  {{ nkey: {node_keys.load(key).id}" in users
    assert "auth_callout" not in users
    assert initialization.ensure(home, {"NATS_URL": "nats://127.0.0.1:1"}, tmp_path).settings.nats_admission == "users"
