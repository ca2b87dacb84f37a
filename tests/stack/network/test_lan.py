from collections.abc import Mapping
from pathlib import Path

import pytest

from shared import errors
from stack import initialization, settings, stack_plan
from stack.stack_home import StackHome


def test_lan_opens_the_stack_and_its_removal_closes_it_again(home: StackHome, tmp_path: Path) -> None:
    before = initialization.ensure(home, {}, tmp_path).settings
    for address in ("127.0.0.2", "127.0.0.3"):
        made = initialization.ensure(home, {"LAN": address}, tmp_path)
        opened = made.settings
        assert (opened.host, opened.dht_host) == (address, address)
        assert stack_plan.public_url("web", opened) == f"https://{address}:3000"
        # Later commands read the same.
        assert settings.read_recorded(home) == made.recorded
        assert initialization.ensure(home, {}, tmp_path).settings == opened
    assert initialization.ensure(home, {"LAN": ""}, tmp_path).settings == before


def test_urls_of_an_ipv6_address_have_brackets(home: StackHome, tmp_path: Path) -> None:
    made = initialization.ensure(home, {"BIND_HOST": "::1"}, tmp_path)
    assert stack_plan.public_url("web", made.settings) == "http://[::1]:3000"
    planned = stack_plan.make(home, made.settings, made.recorded, {})
    (gateway,) = (program for program in planned.programs if program.name == "gateway")
    assert gateway.url == "http://[::1]:3002"


def test_services_call_the_gateway_where_it_listens_and_know_the_pin(home: StackHome, tmp_path: Path) -> None:
    made = initialization.ensure(home, {"LAN": "127.0.0.2"}, tmp_path)
    web = stack_plan.service_environment(home, made.settings, made.recorded, "web")
    auth = stack_plan.service_environment(home, made.settings, made.recorded, "auth")
    assert web["GATEWAY_URL"] == "https://127.0.0.2:3002"
    assert web["GATEWAY_CA_FILE"] == web["TLS_CERT_FILE"]
    assert auth["PUBLIC_KEY_PIN"] == web["PUBLIC_KEY_PIN"]
    line = f"curl -fsSk --pinnedpubkey sha256//{auth['PUBLIC_KEY_PIN']} https://127.0.0.2:3000/install.sh | sh"
    assert stack_plan.install_command(made.settings, made.recorded) == line


def test_pin_is_not_that_of_a_proxy(home: StackHome, tmp_path: Path) -> None:
    made = initialization.ensure(home, {"LAN": "127.0.0.2", "PUBLIC_URL": "https://ai.example.org"}, tmp_path)
    assert "PUBLIC_KEY_PIN" not in stack_plan.service_environment(home, made.settings, made.recorded, "web")
    assert stack_plan.install_command(made.settings, made.recorded) == "curl -fsS https://ai.example.org/install.sh | sh"


def test_no_line_without_tls(home: StackHome, tmp_path: Path) -> None:
    made = initialization.ensure(home, {}, tmp_path)
    assert stack_plan.install_command(made.settings, made.recorded) is None


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        pytest.param({"LAN": "yes"}, "LAN: 'yes' is neither 1 nor an IPv4 address of this machine", id="a word"),
        pytest.param({"LAN": "0.0.0.0"}, r"LAN: '0\.0\.0\.0' is neither 1 nor", id="every address"),
        pytest.param({"LAN": "203.0.113.9"}, r"LAN=203\.0\.113\.9: this machine has no address 203\.0\.113\.9", id="another machine's"),
        pytest.param({"LAN": "127.0.0.2", "BIND_HOST": "127.0.0.1"}, "LAN sets BIND_HOST itself", id="both"),
    ],
)
def test_mistakes_are_not_saved(home: StackHome, tmp_path: Path, environment: Mapping[str, str], why: str) -> None:
    before = initialization.ensure(home, {"MESH_NAME": "lab"}, tmp_path).settings
    with pytest.raises(errors.BadSettings, match=why):
        initialization.ensure(home, environment, tmp_path)
    assert initialization.ensure(home, {}, tmp_path).settings == before


def test_lan_does_not_replace_saved_settings(home: StackHome, tmp_path: Path) -> None:
    initialization.ensure(home, {"DHT_HOST": "mesh.example.org"}, tmp_path)
    with pytest.raises(errors.BadSettings, match="LAN sets DHT_HOST itself") as caught:
        initialization.ensure(home, {"LAN": "127.0.0.2"}, tmp_path)
    assert "DHT_HOST= make up" in caught.value.hint
    assert initialization.ensure(home, {"LAN": "127.0.0.2", "DHT_HOST": ""}, tmp_path).settings.dht_host == "127.0.0.2"
