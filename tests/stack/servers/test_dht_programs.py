import json
from pathlib import Path

import pytest

from shared import errors
from shared.identity import node_keys
from stack import initialization, settings, stack_plan
from stack.servers import dht_programs
from stack.servers.program import DatagramProbe, Program
from stack.stack_home import StackHome
from stack.stack_plan import StackPlan

SEED = bytes(range(32))


def _plan(home: StackHome, **overrides: str) -> StackPlan:
    made = initialization.ensure(home, overrides, home.root.parent)
    return stack_plan.make(home, made.settings, made.recorded, {"PATH": "/bin"})


def _named(planned: StackPlan) -> dict[str, Program]:
    return {program.name: program for program in planned.programs}


def _environment(planned: StackPlan, service: str = "gateway") -> dict[str, str]:
    environment = _named(planned)[service].environment
    return {name: environment[name] for name in ("DHT_BOOTSTRAP", "DHT_RELAYS", "SWARM_HOST") if name in environment}


def _options(program: Program) -> dict[str, object]:
    found: dict[str, object] = json.loads(program.command[-1])
    return found


def test_default_dht_is_on_loopback_without_a_relay(home: StackHome) -> None:
    planned = _plan(home)
    assert _options(_named(planned)["dht"]) == {"host": "127.0.0.1", "bind": "127.0.0.1", "ports": [4737, 4738, 4739]}
    assert "relay" not in _named(planned)
    for service in stack_plan.SERVICES:
        assert _environment(planned, service) == {
            "DHT_BOOTSTRAP": "127.0.0.1:4737,127.0.0.1:4738,127.0.0.1:4739",
            "SWARM_HOST": "127.0.0.1",
        }


def test_public_host_name_is_passed_on_and_all_addresses_are_bound(home: StackHome) -> None:
    planned = _plan(home, DHT_HOST="house.example.org", MESH_RELAY="true")
    program = _named(planned)["dht"]
    assert _options(program) == {"host": "house.example.org", "bind": "0.0.0.0", "ports": [4737, 4738, 4739]}
    assert program.probe == DatagramProbe("127.0.0.1", (4737, 4738, 4739), dht_programs._PING, dht_programs._PONG)
    relay = _options(_named(planned)["relay"])
    assert (relay["host"], relay["bind"]) == ("house.example.org", "0.0.0.0")
    assert _environment(planned)["DHT_BOOTSTRAP"] == "house.example.org:4737,house.example.org:4738,house.example.org:4739"
    assert "SWARM_HOST" not in _environment(planned)


def test_public_ip_address(home: StackHome) -> None:
    planned = _plan(home, DHT_HOST="203.0.113.5", DHT_BIND_HOST="0.0.0.0", DHT_PORT="5000", MESH_RELAY="true")
    program = _named(planned)["dht"]
    assert _options(program) == {"host": "203.0.113.5", "bind": "0.0.0.0", "ports": [5000, 5001, 5002]}
    assert program.probe == DatagramProbe("127.0.0.1", (5000, 5001, 5002), dht_programs._PING, dht_programs._PONG)
    relay = _options(_named(planned)["relay"])
    assert relay["port"] == 5003
    assert relay["bootstrap"] == [{"host": "203.0.113.5", "port": port} for port in (5000, 5001, 5002)]
    environment = _environment(planned)
    assert environment.keys() == {"DHT_BOOTSTRAP", "DHT_RELAYS"}  # each service finds its interface itself
    assert len(environment["DHT_RELAYS"]) == 64


def test_external_dht_nodes_replace_the_embedded_ones(home: StackHome) -> None:
    overrides = {"DHT_BOOTSTRAP": "dht.example.org:1,203.0.113.5:2", "DHT_RELAYS": "ab" * 32, "MESH_RELAY": "on", "DHT_HOST": "203.0.113.9"}
    planned = _plan(home, **overrides)
    assert "dht" not in _named(planned)
    environment = _environment(planned)
    assert environment["DHT_BOOTSTRAP"] == overrides["DHT_BOOTSTRAP"]
    assert environment["DHT_RELAYS"].split(",") == ["ab" * 32, dht_programs.relay_key(stack_plan.relay_seed(home))]
    assert _options(_named(planned)["relay"])["bootstrap"] == [{"host": "dht.example.org", "port": 1}, {"host": "203.0.113.5", "port": 2}]


def test_public_dht_is_used_on_request(home: StackHome) -> None:
    planned = _plan(home, DHT_BOOTSTRAP="public", MESH_RELAY="on", DHT_HOST="203.0.113.9")
    assert "dht" not in _named(planned)
    assert _environment(planned)["DHT_BOOTSTRAP"] == "public"
    assert "bootstrap" not in _options(_named(planned)["relay"])


def test_hyperswarm_can_be_disabled(home: StackHome) -> None:
    planned = _plan(home, HYPERSWARM="off", MESH_RELAY="on", DHT_BOOTSTRAP="public")
    assert not {"dht", "relay"} & _named(planned).keys()
    assert _environment(planned) == {}


def test_relay_seed_is_not_in_any_argument(home: StackHome) -> None:
    planned = _plan(home, MESH_RELAY="on")
    seed = stack_plan.relay_seed(home).read_text().strip()
    assert len(bytes.fromhex(seed)) == 32
    assert seed not in repr(planned)


def test_relay_key_is_derived_from_the_seed_like_in_hyperswarm(tmp_path: Path) -> None:
    file = tmp_path / "seed"
    file.write_text(SEED.hex() + "\n")
    assert bytes.fromhex(dht_programs.relay_key(file)) == node_keys.NodeKey(node_keys.seed_of(SEED)).raw
    for nonsense in ("", "ab", "zz" * 32):
        file.write_text(nonsense)
        with pytest.raises(errors.BadSettings, match="no relay key"):
            dht_programs.relay_key(file)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("DHT_HOST", "203.0.113", "neither an IPv4 address of one machine, such as 203.0.113.5, nor a DNS name"),
        ("DHT_HOST", "0.0.0.0", "neither an IPv4 address of one machine"),
        ("DHT_HOST", "2001:db8::1", "neither an IPv4 address of one machine"),
        ("DHT_BOOTSTRAP", "[2001:db8::1]:4737", "the DHT is IPv4 only"),
        ("DHT_BIND_HOST", "::", "not an IPv4 address"),
        ("DHT_PORT", "65533", "leaves no room"),
        ("DHT_PORT", "0", "leaves no room"),
        ("DHT_BOOTSTRAP", "public,203.0.113.5:1", "stands alone"),
        ("DHT_BOOTSTRAP", "203.0.113.5", "not host:port"),
        ("DHT_RELAYS", "abc", "not a public key"),
    ],
)
def test_impossible_settings_are_reported(variable: str, value: str, words: str) -> None:
    with pytest.raises(errors.BadSettings, match=words) as caught:
        settings.load({variable: value})
    assert variable in caught.value.message


def test_all_ports_are_checked_before_anything_starts(home: StackHome) -> None:
    wanted = stack_plan.ports_wanted(settings.load({"DHT_PORT": "5000", "MESH_RELAY": "on"}))
    assert [(want.port, want.variable) for want in wanted if want.is_udp] == [(port, "DHT_PORT") for port in range(5000, 5004)]
    assert not [want for want in stack_plan.ports_wanted(settings.load({"HYPERSWARM": "off"})) if want.is_udp]
    assert not [want for want in stack_plan.ports_wanted(settings.load({"DHT_BOOTSTRAP": "public"})) if want.is_udp]


def test_missing_node_binary_is_reported_with_an_alternative(home: StackHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_BINARY", "/does/not/exist")
    with pytest.raises(errors.BadSettings, match="not a program") as caught:
        _plan(home)
    assert "HYPERSWARM=off" in caught.value.hint


def test_public_reach_takes_the_public_dht(home: StackHome) -> None:
    planned = _plan(home, REACH="public")
    assert _environment(planned) == {"DHT_BOOTSTRAP": "public"}
    assert "dht" not in _named(planned)
    with pytest.raises(errors.BadSettings, match="DHT_BOOTSTRAP names other nodes"):
        _plan(home, DHT_BOOTSTRAP="203.0.113.5:4737")
    assert "dht" in _named(_plan(home, REACH=""))
