from importlib import import_module
from pathlib import Path

import msgspec
import pytest

from shared import config
from stack import initialization, settings, stack_plan
from stack.stack_home import StackHome
from stack.stack_plan import StackPlan
from tests.deploy.test_settings_reach_services import NOT_UNDER_MAKE_UP

#: service -> the class of its settings.
KINDS = {
    "auth": "AuthSettings",
    "gateway": "GatewaySettings",
    "inference": "InferenceSettings",
    "metrics": "MetricsSettings",
    "web": "WebSettings",
}


def _plan(home: StackHome, **overrides: str) -> StackPlan:
    made = initialization.ensure(home, overrides, home.root.parent)
    return stack_plan.make(home, made.settings, made.recorded, {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "x", "CUDA_VISIBLE_DEVICES": "0"})


def _environments(planned: StackPlan) -> dict[str, dict[str, str]]:
    return {program.name: program.environment for program in planned.programs}


def test_worker_gets_no_database_no_redis_and_no_foreign_secret(home: StackHome) -> None:
    worker = _environments(_plan(home))["inference"]
    secrets = {name for name in worker if name.endswith("_FILE")}
    assert secrets == {"NODE_KEY_FILE", "SERVICE_TOKEN_FILE"}
    assert not [name for name in worker if "DATABASE" in name or "REDIS" in name]
    assert worker["CUDA_VISIBLE_DEVICES"] == "0"


def test_secrets_are_in_no_environment_or_command(home: StackHome) -> None:
    planned = _plan(home, HF_TOKEN="sk-canary", DATABASE_URL="postgresql://u:canary@h/d", REDIS_URL="redis://:canary@h")
    for program in planned.programs:
        assert "canary" not in repr(program)
        for file in home.secrets.iterdir():
            if file.is_file():
                assert file.read_text().strip() not in repr(program), (program.name, file.name)


def test_other_environment_variables_are_not_passed_on(home: StackHome) -> None:
    assert not [name for name, found in _environments(_plan(home)).items() if "AWS_SECRET_ACCESS_KEY" in found]


@pytest.mark.parametrize(
    ("variable", "value", "server"),
    [("DATABASE_URL", "postgresql://u:p@h/d", "postgres"), ("REDIS_URL", "redis://h", "valkey"), ("NATS_URL", "nats://h:4222", "nats")],
)
def test_external_server_replaces_the_embedded_one(home: StackHome, variable: str, value: str, server: str) -> None:
    assert server in _environments(_plan(home))
    planned = _plan(home, **{variable: value})
    assert server not in _environments(planned)
    assert Path(_environments(planned)["auth"][f"{variable}_FILE"]).read_text() == value


def test_database_of_one_service_may_be_external(home: StackHome) -> None:
    found = _environments(_plan(home, AUTH_DATABASE_URL="postgresql://elsewhere/a"))
    assert "postgres" in found
    assert Path(found["auth"]["DATABASE_URL_FILE"]).read_text() == "postgresql://elsewhere/a"
    assert "host=" in Path(found["gateway"]["DATABASE_URL_FILE"]).read_text()


def test_history_alone_starts_no_database(home: StackHome) -> None:
    elsewhere = {"AUTH_DATABASE_URL": "postgresql://elsewhere/a", "GATEWAY_DATABASE_URL": "postgresql://elsewhere/g"}
    found = _environments(_plan(home, **elsewhere))
    assert "postgres" not in found
    assert "DATABASE_URL_FILE" not in found["metrics"]
    found = _environments(_plan(home, **elsewhere, METRICS_DATABASE_URL="postgresql://elsewhere/m"))
    assert Path(found["metrics"]["DATABASE_URL_FILE"]).read_text() == "postgresql://elsewhere/m"


def test_only_gateway_and_web_listen_beyond_loopback(home: StackHome) -> None:
    found = _environments(_plan(home, BIND_HOST="0.0.0.0", ALLOW_PLAIN_HTTP="true"))
    assert [name for name, environment in found.items() if "BIND_HOST" in environment] == ["gateway", "web"]


@pytest.mark.parametrize(
    ("overrides", "is_open"),
    [
        ({}, "true"),
        ({"BIND_HOST": "::1"}, "true"),
        ({"BIND_HOST": "0.0.0.0"}, "false"),
        ({"BIND_HOST": "192.0.2.7"}, "false"),
        ({"BIND_HOST": "0.0.0.0", "OPEN_REGISTRATION": "true"}, "true"),
        ({"OPEN_REGISTRATION": "false"}, "false"),
    ],
)
def test_registration_is_open_only_on_loopback(home: StackHome, overrides: dict[str, str], is_open: str) -> None:
    assert _environments(_plan(home, ALLOW_PLAIN_HTTP="true", **overrides))["auth"]["OPEN_REGISTRATION"] == is_open


def _way_of_tickets(home: StackHome, **overrides: str) -> tuple[str | None, bool]:
    """Return the NATS of tickets, and whether web passes WebSockets on."""
    found = _environments(_plan(home, **overrides))
    return found["auth"].get("PUBLIC_NATS_URL"), "NATS_WEBSOCKET" in found["web"]


def test_tickets_name_the_address_of_the_pages_if_others_can_open_it_over_tls(home: StackHome) -> None:
    assert _way_of_tickets(home) == (None, True), "only this machine opens the pages"
    assert _way_of_tickets(home, PUBLIC_URL="http://ai.example.org") == (None, True)
    assert _way_of_tickets(home, PUBLIC_URL="https://ai.example.org") == ("wss://ai.example.org/mesh", True)
    assert _way_of_tickets(home, PUBLIC_URL="https://ai.example.org/", PUBLIC_KEY_PIN="a+/b=") == (
        "wss://ai.example.org/mesh?pin=a-_b",
        True,
    )
    assert _way_of_tickets(home, PUBLIC_NATS_URL="tls://nats.example.org") == ("tls://nats.example.org", True), "as set"


def test_without_our_nats_server_or_its_callout_tickets_do_not_name_it(home: StackHome) -> None:
    public = {"PUBLIC_URL": "https://ai.example.org"}
    assert _way_of_tickets(home, **public, NATS_AUTH="users") == (None, True)
    assert _way_of_tickets(home, **public, NATS_AUTH="callout", NATS_URL="nats://h:4222") == (None, False)


def test_people_who_are_let_in_have_room_for_coding_agents(home: StackHome) -> None:
    found = _environments(_plan(home))
    assert (found["auth"]["INVITED_TIER"], found["auth"]["OIDC_TIER"]) == ("enterprise", "enterprise")
    assert found["gateway"]["TIER_ENTERPRISE"] == "concurrency=32"
    chosen = _environments(_plan(home, INVITED_TIER="free", OIDC_TIER="pro", TIER_ENTERPRISE="concurrency=500"))
    assert (chosen["auth"]["INVITED_TIER"], chosen["auth"]["OIDC_TIER"]) == ("free", "pro")
    assert chosen["gateway"]["TIER_ENTERPRISE"] == "concurrency=500"


def test_echo_worker_serves_only_echo(home: StackHome) -> None:
    found = _environments(_plan(home, AIMESH_ECHO="1", MODELS="a=/m.gguf"))
    echo, worker = found["inference-echo"], found["inference"]
    assert echo["INFERENCE_BACKEND"] == "echo"
    assert "MODELS" not in echo
    assert echo["INFERENCE_SERVICE_PORT"] != "3003"
    assert echo["NODE_KEY_FILE"] != worker["NODE_KEY_FILE"]


def test_fingerprint_depends_on_settings_and_secrets_only(home: StackHome) -> None:
    first = _plan(home).fingerprint
    assert _plan(home).fingerprint == first
    changed = _plan(home, HF_TOKEN="hf-1").fingerprint
    assert changed != first
    assert _plan(home, HF_TOKEN="hf-2").fingerprint != changed
    assert _plan(home, HF_TOKEN="").fingerprint == first


@pytest.mark.parametrize("name", ["keys/web.nk", "secrets/key_pepper"])
def test_new_key_restarts_the_programs_that_use_it(home: StackHome, name: str) -> None:
    first = _plan(home).fingerprint
    (home.root / name).unlink()
    assert _plan(home).fingerprint != first


@pytest.mark.parametrize("service", stack_plan.SERVICES)
def test_every_service_setting_can_be_given_and_required_ones_are_set(home: StackHome, service: str) -> None:
    kind = getattr(import_module(f"services.{service}.settings"), KINDS[service])
    assert issubclass(kind, msgspec.Struct)
    planned = _environments(_plan(home, MESH_RELAY="on"))[service]
    provided = {each for name in planned for each in (name, name.removesuffix("_FILE"))}
    provided |= NOT_UNDER_MAKE_UP
    passed = {name for name, services in settings.PASSED.items() if service in services} | settings.SECRET
    declared = {setting.variable.name for setting in config.settings_of(kind)}
    beyond_loopback = {"BIND_HOST", "ALLOW_PLAIN_HTTP", "TLS_CERT_FILE", "TLS_KEY_FILE"}
    assert declared - provided - passed - beyond_loopback == set()
    config.load(kind, planned)
    # No service gets a setting that it would not read. A service's own replica database reaches it as DATABASE_READ_URL.
    own = {f"{service.upper()}_DATABASE_READ_URL"}
    assert {name for name, services in settings.PASSED.items() if service in services} - own <= declared


@pytest.mark.parametrize("name", [*sorted(settings.FILES_OF_FEATURES), "MODELS_YAML", "MODEL_TRUST"])
def test_a_changed_file_of_models_restarts_the_stack(home: StackHome, tmp_path: Path, name: str) -> None:
    file = tmp_path / "file"
    file.write_text("before", encoding="utf-8")
    before = _plan(home, **{name: str(file)}).fingerprint
    assert _plan(home, **{name: str(file)}).fingerprint == before
    file.write_text("after", encoding="utf-8")
    assert _plan(home, **{name: str(file)}).fingerprint != before


@pytest.mark.parametrize(
    ("file", "more", "warning"),
    [
        pytest.param(None, {}, "no .gguf file is in {folder} (MODELS_DIR)", id="an empty folder"),
        pytest.param("notes.txt", {}, "no .gguf file is in {folder} (MODELS_DIR)", id="no model"),
        pytest.param("tiny.gguf", {}, "", id="a model"),
        pytest.param(None, {"MODELS_PULL": "hf:a/b"}, "", id="another source"),
        pytest.param(None, {"INFERENCE_BACKEND": "echo"}, "", id="another backend"),
    ],
)
def test_folder_without_models_is_named_at_once(
    home: StackHome, tmp_path: Path, file: str | None, more: dict[str, str], warning: str
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    if file is not None:
        (folder / file).touch()
    made = initialization.ensure(home, {"MODELS_DIR": str(folder), **more}, tmp_path)
    found = stack_plan.find_missing_models(home, made.settings, made.recorded)
    assert found.startswith(warning.format(folder=folder))
    assert bool(found) == bool(warning)


def test_missing_folder_of_models_is_named(home: StackHome, tmp_path: Path) -> None:
    made = initialization.ensure(home, {"MODELS_DIR": "/nowhere"}, tmp_path)
    found = stack_plan.find_missing_models(home, made.settings, made.recorded)
    assert "cannot read /nowhere: No such file or directory" in found
