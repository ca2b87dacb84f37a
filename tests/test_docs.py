"""What the documentation says is so: links lead somewhere, what it shows exists, generated pages are what the code says."""

import ast
import importlib
import importlib.util
import itertools
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import pytest
import yaml

from cli import main as cli_main
from cli.option_values import NumberTakingCommand
from services.gateway.facts import tiers
from services.gateway.models import catalog
from services.inference.settings import InferenceSettings
from services.web import agent_setups
from shared import access_table, config, node
from shared.api import declared
from shared.telemetry import instruments
from shared.telemetry.instruments import Instruments
from shared.types import SERVICE_NAMES, Tier
from stack import settings as stack_settings
from stack.servers import replica_folder
from tests import feature_parts
from tests.deploy.grafana_boards import SERVICE_LEVEL
from tools import docs, reference

ROOT = Path(__file__).parent.parent
PROGRAM = ("cli", "services", "features", "shared", "packages")
_FOLDERS = ("*.md", "docs/**/*.md", "services/*/README.md", "features/*/**/*.md", "packages/*/*.md")
PAGES = sorted(page for pattern in _FOLDERS for page in ROOT.glob(pattern))
BY_HAND = [page for page in PAGES if not page.read_text(encoding="utf-8").startswith(docs.NOTICE.strip())]
#: Variables in the commands shown that no service and no stack reads: of aicli, of make, of the build, of other programs.
OTHER_VARIABLES = {
    "COMPOSE_PROFILES",
    "BACKUP_FOLDER",
    "AIMESH_HOME",
    "AIMESH_KEY",
    "AIMESH_REQUIRE",
    "AICLI_API_KEY",
    "AIMESH_API_KEY",
    "AIMESH_URL",
    "AICLI_PROFILE",
    "TESTS",
    "ONLY",
    "CMAKE_ARGS",
    "BUILD",
    "ENGINE",
    "ENGINE_WHEEL",
    "REPLICAS",
    "UPGRADE",
    "COOLDOWN",
    "PYTEST_ADDOPTS",
    "PUSH",
}
OTHER_VARIABLES |= {"PUBLISH_ADDRESS", "MODELS_FOLDER", "GPU_MODELS", "BACKUP_FOLDER"}  # of compose.yaml
OTHER_VARIABLES |= {"ENABLE_FORWARD_USER_INFO_HEADERS"}  # of Open WebUI
OTHER_VARIABLES |= {"AIMESH_MESH"}  # of install.sh
OTHER_VARIABLES |= {"PGHOST", "PGUSER", "PGPASSWORD"}  # of PostgreSQL's programs
OTHER_VARIABLES |= {name for setup in agent_setups.load() for name in re.findall(r"\b([A-Z_]+)=", setup.commands)}  # of agents
#: Series of prometheus_client's own process collector.
PROCESS_METRICS = re.compile(r"ai_platform_process_")


@dataclass(frozen=True, slots=True)
class Shown:
    """A command that a page shows: the words of one simple command and the variables set for it."""

    where: str
    variables: tuple[str, ...]
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where}: {' '.join(self.words)[:100]}"


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL))


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


@cache
def anchors(page: Path) -> frozenset[str]:
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return frozenset(slug(match[1]) for match in re.finditer(r"^#+ (.+)$", text, re.MULTILINE))


def blocks(page: Path, *languages: str) -> Iterator[tuple[int, str]]:
    """Fenced blocks with the line on which each begins."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^( *)```(\w+)\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL):
        if match[2] in languages:
            yield text.count("\n", 0, match.start(3)) + 1, match[3]


def simple_commands(line: str) -> Iterator[list[str]]:
    """The words of each command of a shell line; pipes, && and comments taken apart."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("|&;"):
            yield words
            words = []
        else:
            words.append(word)
    yield words


def shown_in(page: Path) -> Iterator[Shown]:
    """Every command in the page's shell blocks, and every `make …`, `aicli …` and `python -m …` in its text."""
    name = page.relative_to(ROOT)
    for start, block in blocks(page, "bash", "sh", "console"):
        for number, line in enumerate(re.sub(r"\\\n", " \x00", block).splitlines(), start=start):
            for words in simple_commands(line.replace("\x00", " ")):
                variables = [word.partition("=")[0] for word in words if re.match(r"[A-Z_]+=", word)]
                rest = [word for word in words if not re.match(r"[A-Z_]+=", word)]
                yield Shown(f"{name}:{number}", tuple(variables), tuple(rest))
    text = re.sub(r"^( *)```.*?^\1```", lambda match: "\n" * match[0].count("\n"), page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for match in re.finditer(r"`((?:[A-Z_]+=\S+ )*(?:make|aicli|python -m) [^`\n]+)`", text):
        words = shlex.split(match[1])
        variables = [word.partition("=")[0] for word in words if re.match(r"[A-Z_]+=", word)]
        rest = [word for word in words if not re.match(r"[A-Z_]+=", word)]
        yield Shown(f"{name}:{text.count(chr(10), 0, match.start()) + 1}", tuple(variables), tuple(rest))


def commands(program: str) -> list[Shown]:
    """Every command of this program that a hand-written page shows, also behind `docker compose run`."""
    found = []
    for page in BY_HAND:
        for shown in shown_in(page):
            words = shown.words
            if words[:2] == ("docker", "compose") and program in words:
                words = words[words.index(program) :]
            if words[:1] == (program,):
                found.append(Shown(shown.where, shown.variables, words))
    return found


def is_placeholder(word: str) -> bool:
    return "…" in word or "..." in word


@cache
def existing() -> frozenset[Path]:
    """The files that git knows or would add, with their folders; a checkout also has folders in which only caches are left."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    files = {path for name in listed if name and (path := ROOT / name).is_file()}
    return frozenset(files.union(*(path.parents for path in files)))


# --- links ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for match in re.finditer(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        path, _, anchor = match[1].partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (page.parent / path).resolve() if path else page
        if target not in existing():
            broken.append(f"{match[1]}: there is no such file")
        elif anchor and anchor not in anchors(target):
            broken.append(f"{match[1]}: {target.name} has no such heading")
    assert not broken


def test_the_readme_is_read_in_two_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in seen:
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)#\s]+\.md)", without_code(page.read_text(encoding="utf-8")))
        ahead += [(page.parent / link).resolve() for link in links if not re.match(r"[a-z]+:", link)]
    assert not [str(page.relative_to(ROOT)) for page in PAGES if page not in seen]


def test_pages_that_the_code_names_exist() -> None:
    missing = []
    for path in (path for root in (*PROGRAM, "tools", "bench", "deploy") for path in (ROOT / root).rglob("*")):
        if (path.suffix in {".py", ".sql", ".lua", ".html"} or path.name == "Dockerfile") and "node_modules" not in path.parts:
            named = re.findall(r"\bdocs/[\w./-]+\.md\b", path.read_text(encoding="utf-8"))
            missing += [f"{path.relative_to(ROOT)}: {name}" for name in named if ROOT / name not in existing()]
    assert not missing


# --- commands -------------------------------------------------------------------------------------------------------


def test_make_targets_that_are_shown_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {target for line in re.findall(r"^([a-z][a-z -]*):", makefile, re.MULTILINE) for target in line.split()}
    shown = commands("make")
    assert shown
    assert not [str(one) for one in shown for word in one.words[1:] if not is_placeholder(word) and word not in targets]


def unknown_in(shown: Shown) -> str | None:
    """What is wrong with an aicli command line, as aicli itself would say it."""
    context = click.Context(cli_main.aicli, info_name="aicli")
    words = [word for word in itertools.takewhile(lambda word: word not in (">", "<"), shown.words[1:]) if not is_placeholder(word)]
    try:
        while isinstance(context.command, click.Group) and words:
            if any(words == [name] for param in context.command.get_params(context) for name in param.opts):
                return None  # a text that names an option without its value
            if words[0].startswith("-"):
                words = context.command.make_parser(context).parse_args(words)[1]
                continue
            command = context.command.get_command(context, words[0])
            if command is None:
                return None if words[0].startswith("<") else f"there is no command {words[0]!r}"
            context = click.Context(command, info_name=words.pop(0), parent=context, **command.context_settings)
        if isinstance(context.command, click.Group):
            return None
        if isinstance(context.command, NumberTakingCommand):
            words = [word for word in words if not re.fullmatch(r"-[\d.]+", word)]
        left = context.command.make_parser(context).parse_args(words)[1]
    except click.UsageError as error:
        return error.format_message()
    return f"it takes no {left[0]!r}" if left and not context.allow_extra_args else None


def test_aicli_commands_that_are_shown_exist() -> None:
    shown = commands("aicli")
    assert shown
    assert not [f"{one}: {wrong}" for one in shown if (wrong := unknown_in(one))]


@pytest.mark.parametrize(
    "line",
    [
        "aicli infre hello",
        "aicli infer --colour red hello",
        "aicli keys make x",
        "aicli stack logs --lines",
        "aicli nodes list",
        "aicli admin audit --action key",
    ],
)
def test_a_wrong_command_would_be_found(line: str) -> None:
    assert unknown_in(Shown("here", (), tuple(line.split())))


def walk_throughs() -> Iterator[tuple[str, list[tuple[str, list[str]]]]]:
    """Each walk-through of CONTRIBUTING.md: its heading, and its files with the names that they must hold."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Walk-throughs")[2]
    for part in text.split("\n### ")[1:]:
        rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", part, re.MULTILINE)
        yield part.partition("\n")[0], [(file, re.findall(r"`([^`]+)`", names)) for file, names in rows]


def test_files_and_names_of_the_walk_throughs_exist() -> None:
    found = dict(walk_throughs())
    assert list(found) == ["Add a feature", "Remove a feature", "Add a rate limit", "Add an RPC method", "Add an alert"]
    assert found.pop("Remove a feature") == [], "it needs no file by hand"
    missing = []
    for files in found.values():
        assert 0 < len(files) <= 5
        for file, names in files:
            text = (ROOT / file).read_text(encoding="utf-8")
            assert names, file
            missing += [f"{file}: {name}" for name in names if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
    assert not missing


def test_files_of_the_life_of_a_request_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| ((?:`[\w/]+\.py`(?:, )?)+) \|$", text, re.MULTILINE)
    files = [file for row in rows for file in re.findall(r"`([^`]+)`", row)]
    assert len(files) > 15
    assert [file for file in files if not {ROOT / file, ROOT / "services/gateway" / file} & existing()] == []


def test_modules_that_are_shown_exist() -> None:
    modules = {(one.where, one.words[2]) for one in commands("python") if one.words[1:2] == ("-m",)}
    modules |= {(where, module.replace("<name>", "auth")) for where, module in modules if "<" in module}
    missing = [f"{where}: {module}" for where, module in modules if "<" not in module and importlib.util.find_spec(module) is None]
    assert not missing


def declared_by(service: str) -> set[str]:
    module = importlib.import_module(f"services.{service}.settings")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, node.NodeSettings)]
    return {name for kind in kinds for setting in config.settings_of(kind) for name in setting.variable.names}


def test_variables_that_are_shown_exist() -> None:
    known = {name for service in SERVICE_NAMES.values() for name in declared_by(service)} | stack_settings.known_names() | OTHER_VARIABLES
    for name in ("compose.yaml", "deploy/swarm/stack.yaml"):
        known |= set(re.findall(r"\$\{([A-Z_]+)", (ROOT / name).read_text(encoding="utf-8")))
    wrong = []
    for page in BY_HAND:
        for shown in shown_in(page):
            wrong += [f"{shown}: {name}" for name in shown.variables if not {name, name.removesuffix("_FILE")} & known]
    assert not wrong


def test_each_service_is_shown_with_the_command_that_gives_it_all_it_needs() -> None:
    page = ROOT / "docs" / "howto" / "run-one-service.md"
    shown = [shown.words for shown in shown_in(page)]
    assert {words[3] for words in shown if words[:3] == ("aicli", "stack", "replica")} == set(replica_folder.SERVICES)
    (folder,) = {words[1].partition("/")[0] for words in shown if words[:1] == (".",)}
    assert folder in {words[4] for words in shown if words[:3] == ("aicli", "stack", "replica")}
    (worker,) = (shown for shown in shown_in(page) if shown.words[-1:] == ("services.inference",))
    needed = {setting.variable.name for setting in config.settings_of(InferenceSettings) if setting.default is None}
    assert needed <= set(worker.variables)


def test_compose_services_and_profiles_that_are_shown_exist() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    profiles = {profile for service in compose["services"].values() for profile in service.get("profiles", [])}
    for shown in commands("docker"):
        words = list(shown.words)
        for flag, following in itertools.pairwise(words):
            if flag == "--profile":
                assert following in profiles, str(shown)
            if flag in ("exec", "run") and "compose" in words:
                assert compose["services"].keys() & words[words.index(flag) + 1 :], str(shown)


# --- names ----------------------------------------------------------------------------------------------------------


def test_methods_that_are_named_exist() -> None:
    known = {method.name for method in declared.methods()}
    # The page that teaches how to add a method adds this one.
    known.add("auth.pauseApiKey")
    wrong = []
    for page in BY_HAND:
        named = re.findall(r"\b(?:auth|gateway|inference|metrics|node)\.[a-z]+[A-Z]\w*", page.read_text(encoding="utf-8"))
        wrong += [f"{page.name}: {name}" for name in named if name not in known]
    assert not wrong


def test_metrics_that_are_named_exist() -> None:
    text = reference.metrics()
    wrong = []
    for page in BY_HAND:
        named = set(re.findall(r"\bai_platform_[a-z_]+[a-z]\b", page.read_text(encoding="utf-8")))
        families = {re.sub("_(bucket|count|sum)$", "", name) if f"`{name}`" not in text else name for name in named}
        wrong += [f"{page.name}: {name}" for name in families if f"`{name}`" not in text and not PROCESS_METRICS.match(name)]
    assert not wrong


@pytest.mark.parametrize("page", BY_HAND, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_that_is_shown_parses(page: Path) -> None:
    for _, block in blocks(page, "python"):
        ast.parse(block)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if re.search(r"(ghcr\.io|github\.com)/OWNER\b", page.read_text(encoding="utf-8"))], ids=str
)
def test_what_needs_a_release_says_what_to_type_in_a_checkout(page: Path) -> None:
    """Until there is a release, nobody can type the other."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"(ghcr\.io|github\.com)/OWNER\b", text):
        line = text.count("\n", 0, match.start())
        near = "\n".join(text.splitlines()[max(0, line - 4) : line + 5]).lower()
        assert "in a checkout" in near, f"{page}:{line + 1}"


# --- the feature list -----------------------------------------------------------------------------------------------

FEATURES = ROOT / "docs/reference/spec.md"
STATUSES = {"yes", "partly", "no"}
#: Where a name in the feature list must be found: what runs, how it is deployed, and what it is built from.
SOURCES = {".py", ".sql", ".lua", ".js", ".html", ".yaml", ".yml", ".toml", ".lock", ".env", ".service"}


@dataclass(frozen=True, slots=True)
class Feature:
    line: int
    name: str
    status: str
    where: str


def features(text: str) -> list[Feature]:
    """The rows of the tables that have a status."""
    found, is_inside = [], False
    for number, line in enumerate(text.splitlines(), start=1):
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| feature | status |"):
            is_inside = True
        elif not line.startswith("|"):
            is_inside = False
        elif is_inside and not line.startswith("|---"):
            assert len(cells) == 3, f"line {number} has {len(cells)} cells"
            found.append(Feature(number, *cells))
    return found


@cache
def source_text() -> str:
    roots = (*PROGRAM, "sdk", "deploy", "tools", "bench", "requirements", "compose.yaml", "pyproject.toml")
    listed = subprocess.run(["git", "ls-files", "-z", *roots], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = [ROOT / name for name in listed if Path(name).suffix in SOURCES]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths if path.is_file())


@cache
def source_words() -> frozenset[str]:
    return frozenset(re.findall(r"[\w-]+", source_text()))


def missing_name(name: str) -> str | None:
    """Why this name of the feature list is none; None where it exists. Commands are checked with those of all pages."""
    if name.startswith(("aicli ", "make ", "python -m ")):
        return None
    if re.match(r"\w+/", name) and (ROOT / name.partition("/")[0]).is_dir():
        return None if ROOT / name in existing() else "there is no such file or folder"
    if re.fullmatch(r"[A-Z][A-Z0-9_]+", name) and "_" in name:
        known = {setting for service in SERVICE_NAMES.values() for setting in declared_by(service)} | stack_settings.known_names()
        return None if {name, name.removesuffix("_FILE")} & known else "there is no such setting"
    # `auth.users` is the table `users`, `request_logs.prompt_hash` a column, `GET /metrics` a path.
    word = name.rpartition(".")[2] if re.fullmatch(r"[a-z_]+\.[a-z_]+", name) else name.rpartition(" ")[2]
    is_known = word in source_words() if re.fullmatch(r"[\w-]+", word) else word in source_text()
    return None if is_known else "nothing in the code has this name"


def test_every_feature_has_a_status_and_a_reason_or_a_place() -> None:
    rows = features(FEATURES.read_text(encoding="utf-8"))
    assert len(rows) > 200
    assert not [f"{row.line}: {row.status}" for row in rows if row.status not in STATUSES]
    assert not [f"{row.line}: {row.name}" for row in rows if row.status != "yes" and len(row.where) < 10]


def test_every_feature_that_exists_names_its_proof() -> None:
    """A file, name, command or page, which the next tests look for."""
    rows = features(FEATURES.read_text(encoding="utf-8"))
    assert not [f"spec.md:{row.line}: {row.name}" for row in rows if row.status == "yes" and not re.search(r"`[^`]+`|\]\(", row.where)]


def test_paths_and_names_in_the_feature_list_exist() -> None:
    rows = features(FEATURES.read_text(encoding="utf-8"))
    named = [(row, name) for row in rows for name in re.findall(r"`([^`]+)`", row.where)]
    assert len(named) > 200
    assert not [f"spec.md:{row.line}: `{name}`: {why}" for row, name in named if (why := missing_name(name))]


#: What a row denies: words after these, in its third column.
_DENIAL = re.compile(r"\b(?:no|without|nothing for|can't|isn't|aren't)\b([^.;,(:]*)")
#: Words that a row denies although a command, setting or route has them, and why that is right.
RIGHTLY_DENIED = {
    ("Kubernetes, Docker Swarm", "tested"): "no test has a cluster",
    ("API gateway (Kong", "gateway"): "ours replaces those",
    ("API gateway (Kong", "keys"): "a generic proxy can't enforce ours",
    ("Redis pub/sub for events", "redis"): "REDIS_URL is for sessions and limits",
    ("Redis pub/sub for events", "events"): "they use NATS",
    ("Regular security audits", "audits"): "the audit log is no audit",
    ("Frontend in Next.js", "next"): "MESH_CA_NEXT_KEY_FILE",
    ("Frontend in Next.js", "backend"): "INFERENCE_BACKEND",
    ("Frontend in Next.js", "frontend"): "FRONT_SERVER_FILE",
    ("Usage tracking works", "token"): "ids of tokens, from servers of others",
    ("Dashboards: health", "model"): "there is no row for each on one board, as CLAIMS checks",
}


@cache
def words_that_exist() -> frozenset[str]:
    """The words of all commands, settings and routes, of four letters or more."""

    def names(group: click.Group) -> Iterator[str]:
        context = click.Context(group)
        for name in group.list_commands(context):
            yield name
            below = group.get_command(context, name)
            yield from names(below) if isinstance(below, click.Group) else ()

    declared = {setting for service in SERVICE_NAMES.values() for setting in declared_by(service)} | stack_settings.known_names()
    paths = (route.partition(" ")[2] for route in access_table.ROUTES)
    return frozenset(word for name in (*names(cli_main.aicli), *declared, *paths) for word in re.findall(r"[a-z]{4,}", name.lower()))


def denied(row: Feature) -> set[str]:
    """The words that a row says are missing: those of its name, if nothing of it exists, and those that are denied in words."""
    where = re.sub(r"\]\([^)]*\)", "]", row.where)
    texts = ([row.name] if row.status == "no" else []) + (_DENIAL.findall(where) if row.status != "yes" else [])
    return {word for text in texts for word in re.findall(r"[a-z]{4,}", text.lower())}


def wrongly_denied(row: Feature) -> list[str]:
    allowed = {word for (feature, word) in RIGHTLY_DENIED if row.name.startswith(feature)}
    known = words_that_exist()
    return sorted(word for word in denied(row) - allowed if any(word.startswith(each) or each.startswith(word) for each in known))


def test_no_row_denies_what_has_a_command_a_setting_or_a_route() -> None:
    rows = features(FEATURES.read_text(encoding="utf-8"))
    assert not [f"spec.md:{row.line}: {row.name}: {wrong}" for row in rows if (wrong := wrongly_denied(row))]
    used = {(feature, word) for feature, word in RIGHTLY_DENIED for row in rows if row.name.startswith(feature) and word in denied(row)}
    assert used == RIGHTLY_DENIED.keys()


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(Feature(1, "Invoices, payments: Stripe", "no", "top up credits"), id="commands and settings"),
        pytest.param(Feature(1, "Model signing", "partly", "digests are checked; no signatures"), id="in words"),
        pytest.param(Feature(1, "Embeddings of texts", "no", "aimesh only answers prompts"), id="a route"),
    ],
)
def test_a_row_that_denies_what_exists_would_be_found(row: Feature) -> None:
    assert wrongly_denied(row)


def _free_plan_is_that_of_the_documents() -> bool:
    return tiers.DEFAULTS[Tier.FREE].included_tokens == 100_000 and tiers.DEFAULTS[Tier.PRO].included_tokens == 1_000_000


def _catalog_models() -> list[str]:
    sources = [model.source.lower() for model in catalog.load().values()]
    return [name for name in ("llama-2", "mistral", "codellama", "starcoder", "yi-") if any(name in source for source in sources)]


def _chart(file: str = "") -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "deploy/helm/ai-inference").glob(file or "templates/*")))


#: Each row has these words exactly as long as the code is so.
CLAIMS: dict[tuple[str, str], Callable[[], bool]] = {
    ("`PRICING`, `TIERS`", "the same included tokens"): _free_plan_is_that_of_the_documents,
    ("LLM inference service", "Llama 2, Mistral 7B and CodeLlama are"): lambda: _catalog_models() == ["llama-2", "mistral", "codellama"],
    ("Model services", "StatefulSets"): lambda: '"kind" "StatefulSet"' in _chart("templates/pools.yaml"),
    ("GPU-aware scheduling", "each pool of the chart has `nodeSelector`"): lambda: "poolDefaults.nodeSelector" in _chart("README.md"),
    ("Managed Prometheus", "add a PodMonitoring"): lambda: "PodMonitoring" not in _chart(),
    ("Dashboards: health", "without a row per model"): lambda: not any("model" in panel["title"] for panel in SERVICE_LEVEL["panels"]),
    ("Metrics: database", "`ai_platform_database_bytes`"): lambda: Instruments.database_bytes in instruments.ALL,
} | {words: claim for part in feature_parts.modules("claims") for words, claim in part.CLAIMS.items()}


@pytest.mark.parametrize(("feature", "words"), CLAIMS, ids=lambda value: value)
def test_a_row_of_the_feature_list_claims_no_more_than_the_code_does(feature: str, words: str) -> None:
    [row] = [row for row in features(FEATURES.read_text(encoding="utf-8")) if row.name.startswith(feature)]
    assert (words in row.where) is CLAIMS[feature, words](), f"spec.md:{row.line}: {words!r}"


@pytest.mark.parametrize(
    "name", ["services/gateway/billing.py", "NO_SUCH_SETTING", "auth.no_such_table", "NoSuchClass", "ai_platform_no_such"]
)
def test_a_wrong_name_in_the_feature_list_would_be_found(name: str) -> None:
    assert missing_name(name)


def test_a_row_without_a_known_status_would_be_found() -> None:
    text = "| feature | status | where, or why not |\n|---|---|---|\n| Nomad | planned | some day |\n"
    assert [(row.line, row.status in STATUSES) for row in features(text)] == [(3, False)]


# --- generated pages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted(docs.PAGES))
def test_a_generated_page_is_what_the_code_says(page: str) -> None:
    assert docs.FOLDER.joinpath(page).read_text(encoding="utf-8") == docs.render(page), "run `make docs`"


def test_every_method_of_the_contract_is_in_the_reference() -> None:
    text = reference.methods()
    names = {method.name for method in declared.methods()}
    assert not [name for name in names if f"### {name}\n" not in text]


# --- plain English on the pages -------------------------------------------------------------------------------------

#: Phrases that page texts, mails, and the comments of web must not use. Append what you meet.
REFUSED_ON_PAGES = (
    r"whoever", r"whomever", r"whom", r"go(?:es|ing)? on", r"went on", r"(?:is|are|be) told", r"of its own", r"by itself", r"by themselves",
    r"lies? about", r"so that nobody", r"such as it is", r"one that", r"looks? after", r"as (?:they|it) comes?", r"shall", r"gravest",
    r"tak(?:e|es|en) (?:it )?along", r"good (?:for|until|till)", r"give[sn]? back", r"lets? in", r"anew", r"promis(?:e|es|ed)",
    r"as your tier", r"what its owner may", r"what is left", r"what held before", r"once more", r"somebody", r"anybody",
    r"(?:does|do|did) not answer", r"cannot be read right now", r"nobody like that", r"no bound", r"act for it", r"switch it on",
    r"who answers for", r"95 % (?:answered )?within", r"half of them", r"half within", r"e-mail", r"telephone", r"not let in", r"cut off “",
    r"organisations?(?![/_.\w?}\"])",
)  # fmt: skip
_ON_PAGES = re.compile(rf"(?<![\w/._])(?:{'|'.join(REFUSED_ON_PAGES)})\b", re.IGNORECASE)
_WEB = ROOT / "services" / "web"
PAGE_SOURCES = sorted(
    [
        *(_WEB / "templates").rglob("*.html"),
        *(_WEB / "static" / "js").glob("*.js"),
        *(path for path in _WEB.rglob("*.py") if "node_modules" not in path.parts),
        *(path for kind in ("py", "html") for path in (ROOT / "features").glob(f"*/web/**/*.{kind}")),
        ROOT / "services" / "auth" / "mail_texts.py",
        *(Path(file) for part in feature_parts.modules("page_texts") for file in part.FILES),
    ]
)


def people_read(path: Path) -> str:
    """The texts, comments and docstrings of a file, without its code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".html":
        return re.sub(r"\{%.*?%\}|(?:href|action|name|id|src|data-offer-part)=\"[^\"]*\"", " ", text)
    if path.suffix == ".js":
        comments = re.findall(r"/\*.*?\*/|^\s*//[^\n]*", text, re.MULTILINE | re.DOTALL)
        texts = re.findall(r"'([^'\n]*)'", text) if path.name == "texts.js" else []
        return "\n".join([re.sub(r"@\w+ (\{.*?\} *\w*)?", " ", each, flags=re.DOTALL) for each in comments] + texts)
    comments = re.findall(r"^\s*#[^\n]*", text, re.MULTILINE)
    constants = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return "\n".join(comments + [each for each in constants if " " in each])


@pytest.mark.parametrize("path", PAGE_SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_and_mails_are_in_plain_english(path: Path) -> None:
    joined = re.sub(r"`[^`\n]*`", "", people_read(path))
    assert not [joined[max(0, found.start() - 40) : found.end() + 40] for found in _ON_PAGES.finditer(joined)]


@pytest.mark.parametrize("text", ["Take it along", "I shall wait", "an organisation", "good until", "Whoever asks"])
def test_a_refused_phrase_on_a_page_would_be_found(text: str) -> None:
    assert _ON_PAGES.search(text)


def test_each_place_that_can_read_a_prompt_has_tests_that_exist() -> None:
    section = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("### Who can read a prompt\n")[2].partition("\n### ")[0]
    _, _, *rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) >= 8
    for row in rows:
        *_, tests, _ = row.split("|")
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
        assert named, f"no test: {row}"
        for file, name in named:
            functions = {
                each.name
                for each in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            assert name in functions, f"{file} has no {name}"
