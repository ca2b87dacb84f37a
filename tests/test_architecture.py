"""The coding style as tests: names and forbidden code. Import rules are in pyproject.toml (import-linter).

Each rule yields findings, `file:line what is wrong`; a test fails with all of them at once.
"""

import ast
import gc
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

from shared import api, features
from tests import feature_parts

ROOT = Path(__file__).parent.parent
#: Code that users run. Only the safety rules apply to tests and benches.
PROGRAM = ("services", "shared", "features", "cli", "stack", "tools", "packages/pyhyperswarm/src")
EVERYTHING = (*PROGRAM, "bench", "tests")

MAX_TEST_SLEEP_SECONDS = 0.05
VAGUE_WORDS = {"util", "utils", "helper", "helpers", "common", "misc"}
VAGUE_ENDINGS = ("Helper", "Helpers", "Util", "Utils", "Misc")

#: The only places that may catch all exceptions: each logs once, and answers or tries again. CONTRIBUTING.md names them.
CATCH_ALL = {
    "shared/rpc/serving.py": "the RPC dispatcher",
    "services/gateway/http_api/http_app.py": "the dispatcher of HTTP requests",
    "shared/transports/nats/nats_client.py": "the dispatcher of NATS messages: a callback that raises must not cost the connection",
    "shared/background/items.py": "single items of background work",
    "shared/background/tasks.py": "the task supervisor",
    "shared/node/lifecycle.py": "carries the error of a block out of its task group",
    "cli/main.py": "the CLI main",
}
#: The only places that read the environment; other code gets its settings as arguments.
READS_ENVIRONMENT = {
    "shared/node": "node.run loads the settings of a service, once",
    "cli": "a person's shell is the CLI's settings",
    "stack": "the supervisor hands its own environment on to its children",
    "tools": "set-up, before there is a program",
    "shared/stores/recovery_check.py": "loads the settings of the programs that check a restored database, once",
    "packages/pyhyperswarm/src/pyhyperswarm/sidecar_process.py": "finds the machine's Node.js",
    "services/inference/backends/plan_program.py": "a program that loads the worker's settings, once",
    "services/inference/backends/model_offer.py": "a program that loads the worker's settings, once",
    "shared/landlock.py": "lets an engine read the folders that the system's loader finds in its variable",
    "services/inference/child_process.py": "hands the machine's variables on to child processes, without secrets",
} | {place: why for part in feature_parts.modules("architecture") for place, why in part.READS_ENVIRONMENT.items()}
READS_ENVIRONMENT |= dict.fromkeys((f"features/{name}/stack" for name in features.having("stack.part")), "is part of the stack")
#: Code with SQL, other than queries.sql and migrations.
HOLDS_SQL = {"shared/stores/database": "settings of a session", "shared/stores/migrations": "the migration runner's own table"}


@dataclass(frozen=True, slots=True)
class Finding:
    path: Path
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} {self.what}"


@dataclass(frozen=True)
class Module:
    path: Path
    text: str
    tree: ast.Module

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        return tuple(ast.walk(self.tree))

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    def stands_in(self, places: Iterable[str]) -> bool:
        """Return whether the module is in one of the places; `shared/rpc` means shared/rpc.py or anything in shared/rpc/."""
        return any(self.name in (place, f"{place}.py") or self.name.startswith(f"{place}/") for place in places)

    def find(self, node: ast.AST, what: str) -> Finding:
        return Finding(self.path, getattr(node, "lineno", 1), what)


@cache
def parse(root: str) -> tuple[Module, ...]:
    """Parse each file once for all tests."""
    paths = [path for path in sorted((ROOT / root).rglob("*.py")) if "node_modules" not in path.parts]
    # A million nodes that all stay alive: the garbage collector would traverse them repeatedly, which takes longer than parsing.
    gc.disable()
    try:
        return tuple(Module(path, text := path.read_text(encoding="utf-8"), ast.parse(text, str(path))) for path in paths)
    finally:
        gc.enable()


def modules(*roots: str) -> Iterator[Module]:
    for root in roots:
        yield from parse(root)


def name_of(node: ast.expr) -> str:
    """Return the name as written, like `asyncio.create_task`; `?` for a part that is not a name. `ast.unparse` is twenty times slower."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return f"{name_of(node.func)}()" if isinstance(node, ast.Call) else "?"


def calls(module: Module) -> Iterator[tuple[ast.Call, str]]:
    """Yield every call and the name of what it calls."""
    for node in module.nodes:
        if isinstance(node, ast.Call):
            yield node, name_of(node.func)


def none_of(findings: Iterable[Finding]) -> None:
    found = [str(finding) for finding in findings]
    assert not found, "\n" + "\n".join(found)


# --- names and words ------------------------------------------------------------------------------------------------


def vague_names(module: Module) -> Iterator[Finding]:
    for part in module.path.relative_to(ROOT).with_suffix("").parts:
        if vague := VAGUE_WORDS & set(part.split("_")):
            yield module.find(module.tree, f"{part}: {', '.join(vague)} says nothing about what is in it")
    for node in module.nodes:
        if isinstance(node, ast.ClassDef) and node.name.endswith(VAGUE_ENDINGS):
            yield module.find(node, f"class {node.name}: name it after what it is, not that it is one")


def missing_docstring(module: Module) -> Iterator[Finding]:
    if not ast.get_docstring(module.tree):
        yield module.find(module.tree, "no docstring: its first line says what the module owns")


def test_no_name_is_vague() -> None:
    none_of(finding for module in modules(*PROGRAM, "bench") for finding in vague_names(module))


def test_every_module_says_what_it_owns() -> None:
    none_of(finding for module in modules(*PROGRAM, "bench") for finding in missing_docstring(module))


# --- imports --------------------------------------------------------------------------------------------------------

#: In the longest chain of modules in `shared`, counting each package's __init__. This number may only fall.
MAX_SHARED_IMPORT_DEPTH = 10
#: The same for services, whose layers are contracts.
MAX_SERVICE_IMPORT_DEPTHS = {"gateway": 15, "inference": 12}


def imports_inside(package: str) -> dict[str, set[str]]:
    """Return which modules of a package each of its modules imports, anywhere in the file."""
    found = {module.name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): module for module in modules(package)}
    graph: dict[str, set[str]] = {name: set() for name in found}
    for name, module in found.items():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                graph[name].update(alias.name for alias in node.names if alias.name in found)
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    graph[name].update({whole} if whole in found else {node.module} & found.keys())
        graph[name].discard(name)
    return graph


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
    chains: dict[str, list[str]] = {}

    def chain_of(name: str) -> list[str]:
        if name not in chains:
            chains[name] = []  # ends the recursion in a cycle; import-linter forbids cycles
            chains[name] = [name, *max((chain_of(other) for other in sorted(graph[name])), key=len, default=[])]
        return chains[name]

    return max((chain_of(name) for name in sorted(graph)), key=len)


def test_shared_is_not_deep() -> None:
    chain = longest_chain(imports_inside("shared"))
    assert len(chain) - 1 <= MAX_SHARED_IMPORT_DEPTH, " -> ".join(chain)


def test_programs_reach_every_part_of_the_contract_that_they_name() -> None:
    """`api.billing` loads its module on first use, if the package lists it; in a test, another import may have loaded it before."""
    paths = [path for folder in ("cli", "stack", "services", "shared", "features") for path in (ROOT / folder).rglob("*.py")]
    texts = [text for path in paths if "from shared import api" in (text := path.read_text("utf-8"))]
    named = {name for text in texts for name in re.findall(r"(?<![\w.])api\.([a-z_]+)\.", text)}
    assert len(named) > 10
    assert named <= set(api.__all__)


@pytest.mark.parametrize("service", MAX_SERVICE_IMPORT_DEPTHS)
def test_a_service_is_not_deep(service: str) -> None:
    """Imports for types count, too."""
    chain = longest_chain(imports_inside(f"services/{service}"))
    assert len(chain) <= MAX_SERVICE_IMPORT_DEPTHS[service], " -> ".join(chain)


# --- errors and tasks -----------------------------------------------------------------------------------------------


def catches_everything(module: Module) -> Iterator[Finding]:
    for node in module.nodes:
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = ast.unparse(node.type) if node.type else "everything"
        passes_on = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
        if re.search(r"\b(Exception|BaseException|everything)\b", caught) and not passes_on:
            yield module.find(node, f"catches {caught}: catch what you can do something about, let the rest fly")


def orphan_tasks(module: Module) -> Iterator[Finding]:
    for node, called in calls(module):
        owner, _, method = called.rpartition(".")
        if method == "ensure_future" or (method == "create_task" and (not owner or re.search(r"asyncio|loop", owner))):
            yield module.find(node, f"{called}: a task belongs to somebody's TaskGroup")


def test_only_few_places_catch_everything_and_contributing_names_them() -> None:
    found = [finding for module in modules(*PROGRAM) for finding in catches_everything(module)]
    places = {finding.path.relative_to(ROOT).as_posix() for finding in found}
    none_of(finding for finding in found if finding.path.relative_to(ROOT).as_posix() not in CATCH_ALL)
    assert places == set(CATCH_ALL), "delete what catches no longer"
    (rule,) = re.findall(r"`except Exception` is only in (.*?)\.\s", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    assert set(re.findall(r"`([^`]+\.py)`", rule)) == set(CATCH_ALL)


def test_every_task_has_an_owner() -> None:
    none_of(finding for module in modules(*PROGRAM, "bench") for finding in orphan_tasks(module))


# --- unsafe code ----------------------------------------------------------------------------------------------------

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load", "os.system", "os.popen"}
RUNS_SQL = {"execute", "executemany", "fetch", "fetchrow", "fetchval", "prepare", "cursor"}
SQL = re.compile(
    r"^\s*(SELECT\s|INSERT\s+INTO\s|UPDATE\s+\S+\s+SET\s|DELETE\s+FROM\s|TRUNCATE\s|(CREATE|ALTER|DROP)\s+(TABLE|INDEX|SCHEMA|VIEW|TYPE|FUNCTION)\b)"
)


def unsafe_code(module: Module) -> Iterator[Finding]:
    for node in module.nodes:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            if name.partition(".")[0] in UNSAFE_MODULES:
                yield module.find(node, f"imports {name}, which runs what it reads: use msgpack or JSON")
    for call, called in calls(module):
        if called in UNSAFE_CALLS or any(word.arg == "shell" and ast.unparse(word.value) != "False" for word in call.keywords):
            yield module.find(call, f"{called} turns text into code")


def is_assembled(text: ast.expr) -> bool:
    """Return whether a string is assembled at run time: an f-string with a value, `+`, `%` or `.format`."""
    if isinstance(text, ast.JoinedStr):
        return any(isinstance(part, ast.FormattedValue) for part in text.values)
    if isinstance(text, ast.BinOp):
        return isinstance(text.op, ast.Add | ast.Mod)
    return isinstance(text, ast.Call) and isinstance(text.func, ast.Attribute) and text.func.attr in {"format", "join", "replace"}


def assembled_sql(module: Module) -> Iterator[Finding]:
    for call, called in calls(module):
        if called.rpartition(".")[2] in RUNS_SQL and call.args and is_assembled(call.args[0]):
            yield module.find(call, f"{called} is given SQL that Python assembled: pass values as $1, $2, …")


def sql_in_python(module: Module) -> Iterator[Finding]:
    for node in module.nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SQL.match(node.value):
            yield module.find(node, f"SQL in Python: give it a name in queries.sql ({node.value.split()[0]} …)")


def loose_patterns(module: Module) -> Iterator[Finding]:
    for call, called in calls(module):
        for word in call.keywords if called.endswith("Meta") else ():
            if word.arg == "pattern" and ast.unparse(word.value).rstrip("'\"").endswith("$"):
                yield module.find(call, "in Python, $ also matches before a line break at the end: end a field's pattern with \\Z")


def joined_addresses(module: Module) -> Iterator[Finding]:
    for node in module.nodes:
        for host, colon, port in _triples(node.values) if isinstance(node, ast.JoinedStr) else ():
            fields = isinstance(host, ast.FormattedValue) and isinstance(port, ast.FormattedValue)
            if fields and ast.unparse(colon) == "':'" and "port" in ast.unparse(port):
                yield module.find(node, "an IPv6 address needs brackets: shared.addresses.host_port")


def children_at_the_terminal(module: Module) -> Iterator[Finding]:
    for call, called in calls(module):
        if called.endswith("create_subprocess_exec") and not any(word.arg == "start_new_session" for word in call.keywords):
            yield module.find(call, "Ctrl-C would end this child before its parent, which reports a crash: start_new_session=True")


def _triples(values: list[ast.expr]) -> Iterator[tuple[ast.expr, ast.expr, ast.expr]]:
    yield from zip(values, values[1:], values[2:], strict=False)


def test_nothing_turns_text_into_code() -> None:
    none_of(finding for module in modules(*EVERYTHING) for finding in unsafe_code(module))


def test_no_field_accepts_a_line_break_at_its_end() -> None:
    none_of(finding for module in modules(*PROGRAM) for finding in loose_patterns(module))


def test_ipv6_addresses_have_brackets() -> None:
    # The DHT is IPv4 only.
    exempt = {"shared/addresses.py", "packages/pyhyperswarm/src/pyhyperswarm/peer_connection.py"}
    none_of(finding for module in modules(*PROGRAM) if module.name not in exempt for finding in joined_addresses(module))


def test_ctrl_c_reaches_no_child_of_a_service() -> None:
    # The stack's programs and commands end with the terminal that started them.
    inside = [module for module in modules("services", "shared", "features") if "/stack/" not in module.name]
    none_of(finding for module in inside for finding in children_at_the_terminal(module))


def test_no_sql_is_assembled() -> None:
    none_of(finding for module in modules(*PROGRAM) if not module.stands_in(HOLDS_SQL) for finding in assembled_sql(module))


def test_sql_stands_in_sql_files() -> None:
    none_of(finding for module in modules(*PROGRAM) if not module.stands_in(HOLDS_SQL) for finding in sql_in_python(module))


def test_queries_have_a_name_and_a_comment() -> None:
    findings = []
    for path in sorted([*ROOT.glob("services/*/queries.sql"), *ROOT.glob("services/*/queries/*.sql")]):
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            if line.startswith("-- name:") and not re.fullmatch(r"-- name: [a-z][a-z0-9_]*", line.rstrip()):
                findings.append(Finding(path, number, f"{line!r}: say `-- name: find_user_by_name`"))
            elif line.startswith("-- name:") and not (number < len(lines) and re.match(r"-- \S", lines[number])):
                findings.append(Finding(path, number, "no comment line that says what the query does"))
    none_of(findings)


def test_migrations_are_numbered_and_say_when_they_run() -> None:
    for folder in sorted(ROOT.glob("services/*/migrations")):
        names = sorted(path.name for path in folder.glob("*.sql"))
        for number, name in enumerate(names, start=1):
            assert re.fullmatch(rf"{number:04}_(pre|post)_[a-z0-9_]+\.sql", name), f"{folder.relative_to(ROOT)}/{name}: NNNN_pre_what.sql"


# --- settings -------------------------------------------------------------------------------------------------------


def environment_reads(module: Module) -> Iterator[Finding]:
    for node in module.nodes:
        if isinstance(node, ast.Attribute) and name_of(node) in {"os.environ", "os.getenv", "os.environb"}:
            yield module.find(node, f"{name_of(node)}: settings are read once, by node.run or the CLI, and passed on")
        if isinstance(node, ast.ImportFrom) and node.module == "os" and {"environ", "getenv"} & {alias.name for alias in node.names}:
            yield module.find(node, "imports the environment: settings are read once, by node.run or the CLI, and passed on")


def test_the_environment_is_read_in_few_places() -> None:
    none_of(finding for module in modules(*PROGRAM) if not module.stands_in(READS_ENVIRONMENT) for finding in environment_reads(module))


# --- tests ----------------------------------------------------------------------------------------------------------


def long_sleeps(module: Module) -> Iterator[Finding]:
    for call, called in calls(module):
        if called in {"asyncio.sleep", "time.sleep"} and call.args and isinstance(call.args[0], ast.Constant):
            seconds = call.args[0].value
            if isinstance(seconds, int | float) and seconds > MAX_TEST_SLEEP_SECONDS:
                yield module.find(call, f"sleeps {seconds} s: wait for the thing itself, or pass a clock")


def test_no_test_sleeps() -> None:
    none_of(finding for module in modules("tests") if module.path.name != "bench.py" for finding in long_sleeps(module))


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        pytest.param(catches_everything, "try:\n  x()\nexcept (ValueError, Exception):\n  pass", id="a broad except in a tuple"),
        pytest.param(catches_everything, "try:\n  x()\nexcept:\n  pass", id="a bare except"),
        pytest.param(orphan_tasks, "asyncio.create_task(x())", id="a task without an owner"),
        pytest.param(orphan_tasks, "asyncio.get_running_loop().create_task(x())", id="a task of the loop"),
        pytest.param(unsafe_code, "from pickle import loads", id="pickle"),
        pytest.param(unsafe_code, "eval(text)", id="eval"),
        pytest.param(unsafe_code, "subprocess.run(text, shell=True)", id="a shell"),
        pytest.param(loose_patterns, "Name = Annotated[str, msgspec.Meta(pattern='^[a-z]+$')]", id="a line break at the end"),
        pytest.param(joined_addresses, "url = f'http://{settings.host}:{ports[0]}'", id="a host without brackets"),
        pytest.param(children_at_the_terminal, "await asyncio.create_subprocess_exec(*words, stdin=pipe)", id="a child at the terminal"),
        pytest.param(assembled_sql, "await db.fetch(f'… {name}')", id="an f-string as SQL"),
        pytest.param(assembled_sql, "await db.execute('…' + name)", id="a sum as SQL"),
        pytest.param(sql_in_python, "query = 'SELECT 1'", id="SQL in Python"),
        pytest.param(environment_reads, "os.environ['HOME']", id="the environment"),
        pytest.param(long_sleeps, "await asyncio.sleep(1)", id="a long sleep"),
        pytest.param(missing_docstring, "x = 1", id="no docstring"),
        pytest.param(vague_names, "class WorkerHelper: ...", id="a helper"),
    ],
)
def test_each_rule_finds_what_it_is_for(rule: object, line: str) -> None:
    module = Module(ROOT / "shared" / "example.py", line, ast.parse(line))
    assert callable(rule)
    assert list(rule(module))


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        pytest.param(catches_everything, "try:\n  x()\nexcept BaseException:\n  close()\n  raise", id="clean up and pass on"),
        pytest.param(orphan_tasks, "self.tasks.create_task(x())", id="a task in a group"),
        pytest.param(assembled_sql, "await db.fetch(queries['find'], name)", id="a named query"),
        pytest.param(long_sleeps, "await asyncio.sleep(0)", id="a yield to the loop"),
    ],
)
def test_no_rule_finds_what_is_right(rule: object, line: str) -> None:
    module = Module(ROOT / "shared" / "example.py", line, ast.parse(line))
    assert callable(rule)
    assert not list(rule(module))
