"""What the four files have in common."""

import re
import shutil
import subprocess

import pytest
import yaml

from services.gateway.http_api.http_call import MAX_BODY_BYTES
from services.gateway.requests.image_admission import ImageLimits
from services.gateway.settings import GatewaySettings
from shared import body_limits, config
from shared.node import http_tunnel
from tests.cases import case
from tests.deploy.proxies.programs import FILES
from tests.stacks import REPOSITORY

PROXIES = {
    "nginx": ("nginx.conf",),
    "haproxy": ("haproxy.cfg",),
    "caddy": ("Caddyfile",),
    "traefik": ("traefik.yaml", "traefik-routes.yaml"),
}
#: Path and limit; no path: of all others.
LIMITS = {
    "nginx": re.compile(r"(?:location (\S+) \{ )?client_max_body_size (\w+);"),
    "haproxy": re.compile(r"(?:setenv BODY_BYTES (?=\d)|int\((?=\d+\) if \{ path_beg (\S+)))(\d+)"),
    "caddy": re.compile(r"import body (?:@prompts|(\S+)\*) (\w+)"),
}
#: How many WebSockets an address may offer in a second; Caddy lets web count.
OFFERS = {"nginx": r"zone=offers:1m rate=(\d+)r/s", "haproxy": r"sc_http_req_rate\(0\) gt (\d+)", "traefik": r"average: (\d+), burst: \1,"}
MAX = 85


def read(name: str) -> str:
    return "".join((FILES / file).read_text(encoding="utf-8") for file in PROXIES[name])


@pytest.mark.parametrize("name", PROXIES)
def test_it_is_short(name: str) -> None:
    assert len(read(name).splitlines()) <= MAX


@pytest.mark.parametrize("name", PROXIES)
def test_it_waits_longer_than_the_gateway(name: str) -> None:
    seconds = next(setting.default for setting in config.settings_of(GatewaySettings) if setting.variable.name == "REQUEST_TIMEOUT_SECONDS")
    assert f"{int(seconds or 0) + 15}s" in read(name)


def test_they_have_the_body_limits_of_the_gateway() -> None:
    """Traefik has none."""
    assert MAX_BODY_BYTES + ImageLimits().most_bytes * 4 // 3 == body_limits.GENERAL_BYTES
    wanted = {"": body_limits.GENERAL_BYTES, **body_limits.LARGE_BYTES}
    for name in ("nginx", "haproxy", "caddy"):
        with case(name):
            assert {path: _bytes(size) for path, size in LIMITS[name].findall(read(name))} == wanted
    # Long bodies aren't kept on the proxy's disk.
    assert read("nginx").count("proxy_request_buffering off") == len(body_limits.LARGE_BYTES)
    # A prompt has its own limit, which another path doesn't pass by.
    (exceptions,) = re.findall(r"@prompts not path (.+)", read("caddy"))
    assert exceptions.split() == ([f"{path}*" for path in body_limits.LARGE_BYTES] or ["/none"])


def test_they_have_the_limit_of_web_for_machines_that_join() -> None:
    for name, pattern in OFFERS.items():
        with case(name):
            assert re.findall(pattern, read(name)) == [str(http_tunnel.MAX_OFFERS)]


def _bytes(size: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]*)", size).groups()  # type: ignore[union-attr]
    return int(number) * {"": 1, "k": 1024, "KiB": 1024, "m": 1024**2, "MiB": 1024**2}[unit]


def test_the_page_of_proxies_has_the_limits() -> None:
    page = (REPOSITORY / "docs" / "howto" / "proxies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) \| (\d+) (KiB|MiB) \|", page, re.MULTILINE)
    found = {path: _bytes(number + unit) for paths, number, unit in rows for path in re.findall(r"`([^`]+)`", paths) or [""]}
    assert {"": body_limits.GENERAL_BYTES, **body_limits.LARGE_BYTES}.items() <= found.items()


def test_ingresses_let_the_largest_body_through_and_keep_none() -> None:
    annotations = yaml.safe_load((REPOSITORY / "deploy/kustomize/overlays/prod/ingress.yaml").read_text(encoding="utf-8"))["metadata"][
        "annotations"
    ]
    values = yaml.safe_load((REPOSITORY / "deploy/helm/ai-inference/values.yaml").read_text(encoding="utf-8"))
    for size in (annotations["nginx.ingress.kubernetes.io/proxy-body-size"], values["entry"]["maxBodySize"]):
        assert _bytes(size) >= max(body_limits.LARGE_BYTES.values(), default=0)
    assert annotations["nginx.ingress.kubernetes.io/proxy-request-buffering"] == "off"


def test_the_hook_of_certbot_is_a_program() -> None:
    hook = FILES / "renewed.sh"
    assert hook.stat().st_mode & 0o111
    assert subprocess.run([shutil.which("sh") or "sh", "-n", hook], check=False).returncode == 0
