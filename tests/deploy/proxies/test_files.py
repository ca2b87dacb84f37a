"""What the four files have in common."""

import shutil
import subprocess

import pytest

from services.gateway.http_api.http_call import MAX_BODY_BYTES
from services.gateway.requests.image_admission import ImageLimits
from services.gateway.settings import GatewaySettings
from shared import config
from tests.deploy.proxies.programs import FILES

PROXIES = {
    "nginx": ("nginx.conf",),
    "haproxy": ("haproxy.cfg",),
    "caddy": ("Caddyfile",),
    "traefik": ("traefik.yaml", "traefik-routes.yaml"),
}
LONGEST = 70


def read(name: str) -> str:
    return "".join((FILES / file).read_text(encoding="utf-8") for file in PROXIES[name])


@pytest.mark.parametrize("name", PROXIES)
def test_it_is_short(name: str) -> None:
    assert len(read(name).splitlines()) <= LONGEST


@pytest.mark.parametrize("name", PROXIES)
def test_it_waits_longer_than_the_gateway(name: str) -> None:
    seconds = next(setting.default for setting in config.settings_of(GatewaySettings) if setting.variable.name == "REQUEST_TIMEOUT_SECONDS")
    assert f"{int(seconds or 0) + 15}s" in read(name)


def test_they_have_the_body_limit_of_the_gateway() -> None:
    most_bytes = MAX_BODY_BYTES + ImageLimits().most_bytes * 4 // 3
    assert most_bytes == 17 * 1024 * 1024
    assert "client_max_body_size 17m;" in read("nginx")
    assert f"BODY_BYTES {most_bytes} " in read("haproxy")
    assert "max_size 17MiB" in read("caddy")


def test_the_hook_of_certbot_is_a_program() -> None:
    hook = FILES / "renewed.sh"
    assert hook.stat().st_mode & 0o111
    assert subprocess.run([shutil.which("sh") or "sh", "-n", hook], check=False).returncode == 0
