"""Features keep inside their borders: they import what they declare, the core finds all of their files, and nothing has two owners."""

import re
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

import services.web.features
from cli import main
from cli.admin.admin_commands import admin
from cli.ask.models import models
from services.gateway.settings import GatewaySettings
from services.inference.features import WorkerPart
from services.metrics.settings import MetricsSettings
from shared import config, features
from shared.api import gateway
from shared.api.method import Method, Nothing, StreamMethod
from shared.background import item_kinds
from shared.features import Command, Feature, HttpApi
from shared.telemetry import instruments

#: What may be directly in a feature; and what each program looks for.
AT_THE_TOP = {
    "README.md", "__init__.py", "feature.py", "contract.py", "access.py", "lists.py", "lists", "notices.py", "settings.py",
    "instruments.py", "alerts.rules.yml", "board.json", "auth.sql", "gateway.sql", "metrics.sql",
    "rules", "migrations", "runbooks", "docs", "gateway", "auth", "metrics", "worker", "machine", "web", "stack", "cli",
}  # fmt: skip
PARTS = ("part.py", "thresholds.py")
WITH_PART = ("gateway", "auth", "metrics", "worker", "machine", "web", "stack")
_IMPORT = re.compile(r"^\s*(?:from|import) features\.(\w+)", re.MULTILINE)
ALL = [path.parent for path in sorted(features.FOLDER.glob("*/feature.py"))]


@pytest.mark.parametrize("folder", ALL, ids=lambda folder: folder.name)
def test_a_feature_imports_only_what_it_declares(folder: Path) -> None:
    imported = {name for path in folder.rglob("*.py") for name in _IMPORT.findall(path.read_text(encoding="utf-8"))} - {folder.name}
    assert imported <= features.known()[folder.name].needs


@pytest.mark.parametrize("folder", ALL, ids=lambda folder: folder.name)
def test_the_core_finds_every_file(folder: Path) -> None:
    """A file with another name would be ignored silently."""
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} <= AT_THE_TOP
    assert [name for name in WITH_PART if (folder / name).is_dir() and not any((folder / name / each).exists() for each in PARTS)] == []


def test_every_folder_is_a_feature() -> None:
    """One without `feature.py` would not be found."""
    folders = sorted(path.name for path in features.FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__")
    assert folders == [each.name for each in ALL]


@pytest.mark.parametrize("folder", ALL, ids=lambda folder: folder.name)
def test_a_feature_has_a_page_and_a_sentence(folder: Path) -> None:
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("# ")
    assert (folder / "__init__.py").read_text(encoding="utf-8").count(".") == 1


def test_nothing_has_two_owners() -> None:
    """Methods, routes and pages are merged by `features.merged`, which refuses this; queries by `queries.load_package`."""
    parts = services.web.features.parts()
    for what, names in {
        "commands": [name for section in main.SECTIONS.values() for name in section],
        "settings": [setting.variable.name for setting in config.settings_of(GatewaySettings)],
        "settings of metrics": [setting.variable.name for setting in config.settings_of(MetricsSettings)],
        "metrics": [one.name for one in instruments.ALL],
        "kinds of items": item_kinds.ALL,
        "notices": [kind.__struct_config__.tag for part in features.modules("notices") for kind in part.NOTICES],
        "tabs": [tab.path for part in parts for tab in part.tabs],
        "files of a person's data": ["account", "requests", "usage", *(name for part in parts for name in part.archive)],
        "backends of workers": ["llama", "echo", *(backend.name for each in features.known().values() for backend in each.backends)],
        "paths of vendors' APIs": ["/api/", "/rpc/", "/docs/", *gateway.HTTP_PREFIXES],
        "the root of a local server": ["/" for api in features.http_apis() if api.is_at_root],
        "runbooks": [path.name for folder in features.files("runbooks") for path in folder.iterdir()],
    }.items():
        assert [name for name, count in Counter(names).items() if count > 1] == [], what
    groups = [*main.SECTIONS.values(), admin.commands, models.commands]
    assert len(features.commands()) == sum(each.name in group for each in features.commands() for group in groups)


@pytest.mark.parametrize("group", [admin, models], ids=lambda group: group.name)
def test_each_command_of_a_feature_in_a_group_is_its_own(group: click.Group) -> None:
    for each in features.commands():
        if each.section == group.name:
            found, command = group.commands[each.name].callback, group.commands[each.name]
            assert each.place == f"{found.__module__}:{found.__name__}"
            assert each.summary == (command.help or "").partition("\n")[0]
            assert each.line == f"aicli {group.name} {each.name}"


def test_each_method_of_a_feature_shows_whose_it_is() -> None:
    """A call that a replica doesn't know is repeated at one that has the feature."""
    for name in features.having("contract"):
        own = [each for each in vars(import_module(f"features.{name}.contract")).values() if isinstance(each, Method | StreamMethod)]
        for method in own:
            kinds = (method.request, getattr(method, "reply", Nothing))
            assert features.owner_of(*kinds) == name, method.name


def test_each_backend_that_a_feature_declares_has_what_opens_it() -> None:
    parts = features.parts("worker.part", WorkerPart)
    found = {name: [*parts[name].backends] if name in parts else [] for name in features.known()}
    assert found == {name: [backend.name for backend in feature.backends] for name, feature in features.known().items()}


# --- the mechanism ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Features of the test in place of the real ones."""
    found: dict[str, Feature] = {}
    monkeypatch.setattr(features, "FOLDER", tmp_path)
    monkeypatch.setattr(features, "_attribute", lambda module, _attribute, _kind: found[module.split(".")[1]])
    for name, needs in {"b": (), "a": ("c",), "c": ("b",), "d": ()}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "feature.py").touch()
        api = HttpApi(prefix=f"/{name}/", vendor=name) if needs else None
        commands = (Command(name=name, section="Ask", place="x:y", summary="Do."),)
        found[name] = Feature(needs=frozenset(needs), commands=commands, http_api=api)
    for cached in (features.known, features.having):
        cached.cache_clear()
    yield tmp_path
    for cached in (features.known, features.having):
        cached.cache_clear()


def test_each_feature_comes_after_those_that_it_needs_and_else_by_name(folder: Path) -> None:
    assert [*features.known()] == ["b", "d", "c", "a"]
    (folder / "a" / "gateway.sql").touch()
    (folder / "d" / "gateway.sql").touch()
    assert features.files("gateway.sql") == [folder / "d" / "gateway.sql", folder / "a" / "gateway.sql"]
    assert [api.prefix for api in features.http_apis()] == ["/c/", "/a/"]


def test_a_feature_whose_need_was_taken_away_prevents_the_start(folder: Path) -> None:
    (folder / "b" / "feature.py").unlink()
    with pytest.raises(ValueError, match="the feature c needs b: put it back, or delete c, too"):
        features.known()


def test_features_that_need_each_other_prevent_the_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    circle = {"a": Feature(needs=frozenset("b")), "b": Feature(needs=frozenset("a"))}
    monkeypatch.setattr(features, "_attribute", lambda module, _attribute, _kind: circle.get(module.split(".")[1], Feature()))
    with pytest.raises(ValueError, match="features need each other"):
        features.known()


def test_no_feature_changes_a_row_of_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    class Part:
        METHODS = {"gateway.listNodes": "everybody"}  # noqa: RUF012 - of a test

    Part.__module__ = Part.__name__ = "features.evil.access"
    monkeypatch.setattr(features, "modules", lambda _place: [Part])
    with pytest.raises(ValueError, match=r"gateway\.listNodes is declared already"):
        features.merged({"gateway.listNodes": "administrators"}, "access", "METHODS")
