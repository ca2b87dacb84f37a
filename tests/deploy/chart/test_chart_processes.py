"""Every container starts with the chart's own command and environment and the Secrets that `init` makes, and works with the others."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from services.inference.models import model_discovery
from stack.servers import nats_server
from tests import capabilities, stacks
from tests.deploy import outside
from tests.deploy.chart import cluster, rendering
from tests.deploy.chart.cluster import Cluster
from tests.deploy.containers import Container
from tests.services.inference.models import fake_hub
from tests.services.inference.models.fake_hub import FakeHub
from tests.shared.transports.nats import test_tls
from tests.testnet import free_port

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, dict[str, Container]]]:
    capabilities.require("helm")
    with cluster.cluster(tmp_path_factory.mktemp("cluster")) as everything:
        yield everything


@pytest.fixture
def house(started: tuple[Cluster, dict[str, Container]]) -> Cluster:
    return started[0]


def _new_key(house: Cluster, name: str) -> dict[str, str]:
    """Register a user; return the header with their new key."""
    with httpx.Client(base_url=house.url("aimesh-web", ""), timeout=60) as web:
        account = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
        assert web.post("/api/auth/register", json=account).status_code == 201
        session = web.post("/api/auth/login", json={"username": name, "password": PASSWORD}).json()
        bearer = {"Authorization": f"Bearer {session['access_token']}"}
        made = web.post("/api/auth/api-keys", json={"name": "My CLI Key"}, headers=bearer).json()
        return {"X-API-Key": made.get("apiKey") or made["api_key"]}


def test_a_new_user_gets_an_answer_through_the_pages(house: Cluster) -> None:
    key = _new_key(house, "john_doe")
    with httpx.Client(timeout=60) as web:
        for base in (house.url("aimesh-web", ""), house.url("aimesh-gateway-1", "")):
            answer = web.post(f"{base}/api/inference", json={"prompt": "Say hello", "model": "smollm2", "maxTokens": 8}, headers=key)
            assert answer.status_code == 200, answer.text


def test_prometheus_may_read_the_metrics_of_gateway_and_web(house: Cluster) -> None:
    token = house.secrets["aimesh-observability"]["metrics_token"].decode().strip()
    for name in ("aimesh-gateway", "aimesh-web"):
        # As if from another machine.
        headers = {"X-Forwarded-For": "192.0.2.1", "Authorization": f"Bearer {token}"}
        assert httpx.get(house.url(name, "/metrics"), headers=headers).status_code == 200


def test_the_hook_migrates_nothing_a_second_time(house: Cluster) -> None:
    done = house.run_to_end("aimesh-migrate-pre", "migrate")
    assert "There was nothing to run." in done.stderr


def test_the_backup_agent_backs_up_what_verify_restores(house: Cluster) -> None:
    pod = house.pod("aimesh-backup")
    unpack, environment = house.process(pod, {**pod["initContainers"][0], "env": []}, "aimesh-backup")
    subprocess.run(unpack, env=environment, check=True, timeout=60)
    home = house.folder / "aimesh-backup/var-lib-aimesh/home"
    assert {"mesh_ca.nk", "data_key", "recovery.nk", "backup_identity"} <= {path.name for path in (home / "secrets").iterdir()}
    agent = house.start("aimesh-backup")
    try:
        check, environment = house.process(pod, {**pod["containers"][0], **pod["containers"][0]["readinessProbe"]["exec"]}, "aimesh-backup")
        _wait(lambda: subprocess.run(check, env=environment, capture_output=True, check=False, timeout=30).returncode == 0, agent)
        store = house.folder / "aimesh-backup/var-lib-aimesh/store"
        _wait(lambda: any(store.rglob("*manifest*")), agent)
        [verify] = house.pod("aimesh-backup-verify")["containers"]
        command, environment = house.process(pod, verify, "aimesh-backup")
        done = subprocess.run(command, env=environment, cwd=rendering.ROOT, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        agent.end()


def _wait(is_done: Callable[[], bool], container: Container) -> None:
    give_up_at = time.monotonic() + 90
    while not is_done():
        log = container.log.read_text(encoding="utf-8")[-3000:]
        assert container.process.poll() is None, log
        assert time.monotonic() < give_up_at, log
        time.sleep(0.05)


def test_services_find_valkey_by_its_sentinels(house: Cluster) -> None:
    url = house.secrets["aimesh-gateway"]["redis_url"].decode()
    assert url.startswith("redis+sentinel://:")
    assert f"@127.0.0.1:{house.ports['sentinel']}/main?" in url
    state = httpx.get(house.url("aimesh-gateway", "/dependencies")).json()
    assert "valkey" in json.dumps(state).lower()


@pytest.mark.parametrize(("case", "engine"), [("vllm", "vllm"), ("demo", "ollama")])
def test_the_engine_beside_a_worker_gets_its_model(house: Cluster, tmp_path: Path, case: str, engine: str) -> None:
    name = {"vllm": "vllm-inference", "demo": "inference"}[case]
    pod = rendering.find("StatefulSet", name, case)["spec"]["template"]["spec"]
    [container] = [each for each in pod["initContainers"] if each["name"] == engine]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/hf_token").write_text("hf-one")
    (tmp_path / "run/service_token").write_text("local")
    (tmp_path / engine).write_text('#!/bin/sh\necho "$@" TOKEN="$HF_TOKEN" KEY="$VLLM_API_KEY" >>"$SEEN"\n')
    (tmp_path / engine).chmod(0o755)
    command = [word.replace("/run/aimesh", str(tmp_path / "run")) for word in (*container["command"], *container["args"])]
    environment = {**rendering.environment(container), "PATH": f"{tmp_path}:/usr/bin:/bin", "SEEN": str(tmp_path / "seen")}
    subprocess.run(command, env=environment, check=True, timeout=30)
    seen = (tmp_path / "seen").read_text()
    if engine == "vllm":
        assert seen.startswith("serve meta-llama/Llama-2-7b-hf --host=127.0.0.1 --port=8000 --tensor-parallel-size=1")
        assert "TOKEN=hf-one KEY=local" in seen
    else:
        assert "pull gemma3:4b" in seen


def _state(house: Cluster, name: str) -> str:
    """Return why a worker is not ready; empty if it is."""
    try:
        answer = httpx.get(house.url(name, "/readyz"), timeout=5)
    except httpx.TransportError:
        return "it does not answer"
    if "checks" not in (health := answer.json()):
        return answer.text  # it hasn't joined yet
    return "; ".join(check["detail"] for check in health["checks"] if not check["ok"] and check["needed"])


def _pools() -> list[tuple[str, str]]:
    files = {case: (rendering.CHART / "ci" / f"{case}.yaml").read_text(encoding="utf-8") for case in rendering.CASES}
    return [(case, name) for case, text in files.items() for name in yaml.safe_load(text)["pools"]]


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    """The models of the examples; each is the small model of a worker without settings."""
    body = model_discovery.installed().read_bytes()
    with fake_hub.serving() as site:
        site.add_repository("Qwen/Qwen3-8B-GGUF", {"Qwen3-8B-Q4_K_M.gguf": body})
        site.add_repository("Qwen/Qwen3-0.6B-GGUF", {"Qwen3-0.6B-Q8_0.gguf": body})
        yield site


@pytest.mark.parametrize(("case", "pool"), _pools())
def test_every_pool_of_ci_starts_on_an_empty_volume(house: Cluster, hub: FakeHub, case: str, pool: str) -> None:
    other, mine = house.with_values(case), f"{case}-{pool}"
    # These cases have servers elsewhere.
    nats = {"NATS_URL": f"nats://127.0.0.1:{house.ports['nats']}", "ALLOW_PLAIN_NATS": "true", "NATS_CA_FILE": ""}
    engine = {"OPENAI_BASE_URL": f"http://127.0.0.1:{free_port()}/v1", "OLLAMA_URL": f"http://127.0.0.1:{free_port()}"}
    backend = rendering.environment(other.pod(pool)["containers"][0])["INFERENCE_BACKEND"]
    worker = other.start(pool, mine, **nats, **(engine if backend != "llama" else {"HF_ENDPOINT": hub.url}))
    try:
        if backend == "llama":
            other.wait_until_ready(worker)
        else:
            # The engine beside it comes with another image.
            _wait(lambda: "no connection (connection refused)" in _state(other, mine), worker)
    finally:
        worker.end()


def test_the_gpu_pool_of_the_page_starts_on_an_empty_volume_and_serves(house: Cluster, hub: FakeHub, tmp_path: Path) -> None:
    page = (rendering.ROOT / "docs/howto/kubernetes.md").read_text(encoding="utf-8")
    [example] = re.findall(r"^```yaml\n(pools:.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "page.yaml").write_text(example, encoding="utf-8")
    other = house.with_values("", *cluster.VALUES, f"--values={tmp_path}/page.yaml")
    assert set(yaml.safe_load(example)["pools"]) == {"l4"}
    [image] = [each["image"] for each in other.pod("l4")["containers"]]
    assert image.startswith("localhost/aimesh-worker-cuda:")
    hub.statuses["/api/models/Qwen/Qwen3-8B-GGUF"] = [404] * 2
    hub.cuts["/Qwen/Qwen3-8B-GGUF/resolve/" + "a" * 40 + "/Qwen3-8B-Q4_K_M.gguf"] = 30_000_000
    worker = other.start("l4", HF_ENDPOINT=hub.url)
    try:
        _wait(lambda: _state(other, "l4").startswith("waiting for models: "), worker)
        other.wait_until_ready(worker)
        with httpx.Client(base_url=house.url("aimesh-gateway", ""), headers=_new_key(house, "ada"), timeout=60) as gateway:
            asked = {"model": "Qwen3-8B-Q4_K_M", "messages": [{"role": "user", "content": "Say hello"}], "max_tokens": 4}
            _wait(lambda: gateway.post("/v1/chat/completions", json=asked).status_code == 200, worker)
    finally:
        worker.end()


async def test_a_worker_outside_joins_by_the_entry_answers_and_is_revoked(house: Cluster, tmp_path: Path) -> None:
    certificate = outside.make_certificate(tmp_path)
    for name in ("node.nk", "profile.toml"):
        (tmp_path / name).write_text(house.here(house.secrets["aimesh-migrate"][name].decode()), encoding="utf-8")
        (tmp_path / name).chmod(0o600)
    key = house.secrets["aimesh-auth"]["admin_api_key"].decode()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "AICLI_PROFILE": str(tmp_path / "profile.toml"), "AICLI_API_KEY": key}

    async def aicli(*words: str) -> str:
        command = (sys.executable, "-m", "cli.main", *words)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, env=environment, cwd=rendering.ROOT, stdout=pipe, stderr=pipe)
        outcome = await stacks.outcome_of(process, seconds=60)
        assert outcome.status == 0, outcome.err
        return outcome.out

    web, gateway = (house.ports[name] for name in ("aimesh-web", "aimesh-gateway"))
    await outside.prove_that_a_worker_joins(tmp_path, aicli, web=web, gateway=gateway, key=key, SSL_CERT_FILE=str(certificate))


def test_postgresql_accepts_the_arguments_and_the_access_rules(house: Cluster) -> None:
    [container] = rendering.find("StatefulSet", "aimesh-postgres")["spec"]["template"]["spec"]["containers"]
    rules = rendering.find("ConfigMap", "aimesh-postgres")["data"]["pg_hba.conf"]
    assert rules == (rendering.ROOT / "deploy/docker/pg_hba.conf").read_text(encoding="utf-8")
    assert container["args"][:3] == ["postgres", "-c", "hba_file=/run/aimesh/pg_hba.conf"]


def test_nats_accepts_the_configuration_with_tls(house: Cluster, tmp_path: Path) -> None:
    text = rendering.find("ConfigMap", "aimesh-nats", "prod")["data"]["nats.conf"]
    test_tls.make_certificate(tmp_path, "127.0.0.1")
    for name, made in (("tls.crt", "cert.pem"), ("tls.key", "key.pem"), ("ca.crt", "cert.pem")):
        (tmp_path / name).symlink_to(tmp_path / made)
    (tmp_path / "users.conf").write_bytes(house.secrets["aimesh-nats"]["users.conf"])
    (tmp_path / "nats.conf").write_text(text.replace("/run/tls", str(tmp_path)), encoding="utf-8")
    environment = {"POD_NAME": "aimesh-nats-0", "SERVER_ADDRESS": "aimesh-nats-0.aimesh-nats.aimesh:4222"}
    command = [nats_server.binary(), "-t", "-c", tmp_path / "nats.conf"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr


def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    capabilities.require("prometheus")
    data = rendering.find("ConfigMap", "aimesh-prometheus", "namespaces")["data"]
    (tmp_path / "metrics_token").write_text("x")
    for name, text in data.items():
        # Debian's Prometheus has no Kubernetes service discovery.
        static = re.sub(r"kubernetes_sd_configs: .*", "static_configs: []", text)
        (tmp_path / name).write_text(static.replace("/run/aimesh", str(tmp_path)), encoding="utf-8")
    program = str(capabilities.find_program("promtool"))
    done = subprocess.run(
        [program, "check", "config", str(tmp_path / "prometheus.yml")], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_pod_that_is_taken_away_has_a_pause_and_the_time_of_a_request(started: tuple[Cluster, dict[str, Container]]) -> None:
    # The last test of the module: it stops every container.
    house, pods = started
    hooks = [house.hook(name, "preStop") for name in ("aimesh-gateway", "aimesh-web")]
    assert [hook.wait(timeout=60) for hook in hooks] == [0, 0]
    for name in ("aimesh-web", "aimesh-gateway", "aimesh-gateway-1", "inference", "aimesh-metrics", "aimesh-auth"):
        assert pods[name].stop() == 0, pods[name].log.read_text(encoding="utf-8")[-2000:]
