"""Our files for Prometheus and Alertmanager: their own tools find no mistake, and every alert reaches a receiver."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import asyncpg
import promql_parser
import pytest
import yaml

from services.gateway import store as gateway_store
from services.metrics.alerting import rules
from services.metrics.alerting.rules import AlertRule, Severity
from services.metrics.alerting.thresholds import OUR_FAULT
from services.metrics.service import MetricsService
from services.metrics.settings import MetricsSettings
from shared import features
from shared.telemetry import instruments
from shared.telemetry.instrument import InstrumentKind
from shared.telemetry.metrics_registry import Metrics
from shared.types import SERVICE_NAMES, RequestStatus, Role
from stack import initialization, stack_plan
from stack import stack_home as homes
from tests import feature_parts
from tests.cases import case
from tests.deploy import debian, promql
from tests.testnet import MESH, testnet
from tools import alerts, docs, generated

ROOT = generated.ROOT
DEPLOY, RUNBOOKS = ROOT / "deploy", ROOT / "docs" / "runbooks"
RULES = rules.load()
ALL_RUNBOOKS = [*RUNBOOKS.glob("*.md"), *(path for folder in features.files("runbooks") for path in folder.glob("*.md"))]
CASES = [*sorted((Path(__file__).parent / "rules").glob("*.test.yml")), *feature_parts.files("deploy/*.test.yml")]
ROUTES = DEPLOY / "alertmanager" / "alertmanager.yml"
ADDRESSES = ("PAGE", "CRITICAL", "WARNING", "TICKET", "WATCHDOG")


def test_promtool_finds_no_mistake() -> None:
    checked = debian.check("promtool", "check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    files = sorted(promql.RULES.glob("*.rules.yml"))
    assert f"{len(files)} rule files found" in checked
    debian.check("promtool", "check", "rules", *files)


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.name.partition(".")[0])
def test_rules_fire_and_resolve_and_do_not_fire_just_below_the_threshold(file: Path) -> None:
    debian.check("promtool", "test", "rules", file)


def test_promtool_detects_a_difference(tmp_path: Path) -> None:
    """promtool must not accept everything: the same series under another name give another result."""
    file = next(each for each in CASES if each.name == "trust-1m.test.yml")
    changed = tmp_path / "changed.test.yml"
    text = file.read_text(encoding="utf-8").replace("../../../deploy", str(DEPLOY))
    changed.write_text(text.replace("ai_platform_ledger_drift_micro{", "ai_platform_drift{"), encoding="utf-8")
    with pytest.raises(AssertionError, match="ledger_drift"):
        debian.check("promtool", "test", "rules", changed)


def test_every_rule_has_a_case_for_both_sides() -> None:
    names = [test["name"] for file in CASES for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]]
    for rule in RULES:
        # The watchdog always fires.
        if rule.severity is not Severity.NONE:
            own = "-".join((rule.name, *(value for _, value in rule.labels)))
            assert {f"{own} fires", f"{own} does not fire"} <= set(names), own


def test_expressions_name_what_there_is() -> None:
    for name, expression in [*((rule.name, rule.expression) for rule in RULES), *promql.RECORDED.items()]:
        with case(name):
            for selector in promql.selectors(promql_parser.parse(expression)):
                assert selector.name in promql.LABELS
                matchers = [matcher for matcher in selector.matchers.matchers if matcher.name != "__name__"]
                assert {matcher.name for matcher in matchers} <= promql.LABELS[selector.name]
                services = {value for matcher in matchers if matcher.name == "service" for value in matcher.value.split("|")}
                assert services <= set(SERVICE_NAMES.values())


def test_expressions_list_the_codes_and_statuses_of_the_code() -> None:
    found = {rule.name: rule.expression for rule in RULES}
    assert f'status=~"{"|".join(OUR_FAULT)}"' in found["error_rate_spike"]
    admitted = [status.value for status in RequestStatus if status not in (RequestStatus.LIMITED, RequestStatus.REJECTED)]
    assert f'status=~"{"|".join(admitted)}"' in promql.RECORDED["ai_platform:requests:error_ratio_rate5m"]


def test_texts_use_labels_of_their_alert_only() -> None:
    for rule in RULES:
        with case(rule.name):
            assert re.fullmatch(r"[a-z][a-z_]*", rule.name)
            grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", rule.expression) for label in group.split(",")}
            grouped |= {"model"} if "model_requests:error_ratio" in rule.expression else set()
            named = set(re.findall(r"\$labels\.(\w+)", rule.texts.summary + rule.texts.description))
            assert named <= grouped | {label for label, _ in rule.labels}
            assert rule.texts.summary
            assert not rule.texts.summary.endswith(".")
            assert rule.texts.description.endswith(".")


def test_no_two_rules_create_the_same_alert() -> None:
    keys = [(rule.name, rule.labels) for rule in RULES]
    assert len(keys) == len(set(keys))


def test_frames_of_the_runbooks_are_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(RUNBOOKS, tmp_path / "runbooks")
    monkeypatch.setattr(alerts, "FOLDER", tmp_path / "runbooks")
    assert not generated.drift(alerts.files())
    changed = tmp_path / "runbooks" / "cpu_high.md"
    text = changed.read_text(encoding="utf-8")
    changed.write_text(text.replace("> 0.8", "> 0.5").replace("## Meaning\n\n", "## Meaning\n\nBusy. "), encoding="utf-8")
    assert len(generated.drift(alerts.files())) == 1
    generated.write(alerts.files())
    assert changed.read_text(encoding="utf-8") == text.replace("## Meaning\n\n", "## Meaning\n\nBusy. "), "people write the rest"


def test_promtool_finds_no_mistake_in_any_metric() -> None:
    """Checks the names, units and kinds of every instrument of the list."""
    metrics = Metrics("gateway")
    for instrument in instruments.ALL:
        family: Any = metrics.family(instrument)
        one = family.labels(**dict.fromkeys(instrument.labels, "x")) if instrument.labels else family
        getattr(one, {InstrumentKind.COUNTER: "inc", InstrumentKind.GAUGE: "set", InstrumentKind.HISTOGRAM: "observe"}[instrument.kind])(1)
    text = metrics.render()
    assert all(f"# TYPE {one.name} " in text for one in instruments.ALL if one.name.startswith("ai_platform_"))
    _check_metrics(text)


async def test_promtool_finds_no_mistake_in_the_text_of_a_mesh() -> None:
    async with testnet() as net:
        key_file = net.server.key("metrics", Role.METRICS)
        settings = MetricsSettings(node_key_file=key_file, port=0, prometheus_port=0, mesh=MESH, nats_url=net.server.url)
        metrics = await net.start(MetricsService, settings)
        _check_metrics(await metrics.service.metrics_text())  # type: ignore[attr-defined]


def _check_metrics(text: str) -> None:
    done = subprocess.run(
        [debian.program("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- Alertmanager ---------------------------------------------------------------------------------------------------


def route(**labels: str) -> str:
    """Return the receiver of an alert."""
    words = [f"{name}={value}" for name, value in labels.items()]
    return debian.check("amtool", "config", "routes", "test", f"--config.file={ROUTES}", *words).splitlines()[0]


def test_amtool_finds_no_mistake() -> None:
    debian.check("amtool", "check-config", ROUTES)


@pytest.mark.parametrize("rule", {rule.name: rule for rule in RULES}.values(), ids=lambda rule: rule.name)
def test_every_alert_goes_to_those_who_are_there_for_its_severity(rule: AlertRule) -> None:
    receiver = "watchdog" if rule.severity is Severity.NONE else rule.severity.value
    assert route(alertname=rule.name, severity=rule.severity.value) == receiver


def test_what_silences_another_alert_exists() -> None:
    named = set(re.findall(r"alertname =~? \"?([\w|.+]+)", ROUTES.read_text(encoding="utf-8")))
    names = {name for pattern in named for name in pattern.split("|") if name != ".+_burn"}
    assert "no_worker" in names
    assert names <= {rule.name for rule in RULES}


def start(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run start.sh with a program that only prints its arguments."""
    return subprocess.run(
        [str(DEPLOY / "alertmanager" / "start.sh"), "--more"],
        env={"PATH": os.environ["PATH"], "ALERTMANAGER": "echo", "CONFIG_OUT": str(folder / "out.yml"), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_addresses_of_the_environment_file_are_put_in(tmp_path: Path) -> None:
    file = tmp_path / "addresses.env"
    urls = {name: f"https://example.org/{name.lower()}?a=1&b=%5C|c#d" for name in ADDRESSES}
    file.write_text("".join(f"{name}_WEBHOOK_URL='{url}'\n" for name, url in urls.items()), encoding="utf-8")
    done = start(tmp_path, ALERTMANAGER_ENV=str(file))
    assert done.stdout == f"--config.file={tmp_path / 'out.yml'} --more\n"
    text = (tmp_path / "out.yml").read_text(encoding="utf-8")
    assert all(f'url: "{url}"' in text for url in urls.values())
    assert ".invalid/" not in text
    assert (tmp_path / "out.yml").stat().st_mode & 0o077 == 0
    debian.check("amtool", "check-config", tmp_path / "out.yml")


def test_what_is_left_empty_leads_nowhere(tmp_path: Path) -> None:
    example = DEPLOY / "alertmanager" / "alertmanager.env.example"
    assert start(tmp_path, ALERTMANAGER_ENV=str(example)).returncode == 0
    assert (tmp_path / "out.yml").read_text(encoding="utf-8") == ROUTES.read_text(encoding="utf-8")
    assert set(re.findall(r"^(\w+)_WEBHOOK_URL=$", example.read_text(encoding="utf-8"), re.MULTILINE)) == set(ADDRESSES)


@pytest.mark.parametrize(("url", "words"), [("ftp://example.org", "begins with http"), ("http://example.org/a b", "%20")])
def test_an_address_that_is_none_is_refused(url: str, words: str, tmp_path: Path) -> None:
    done = start(tmp_path, ALERTMANAGER_ENV="/nowhere", PAGE_WEBHOOK_URL=url)
    assert done.returncode == 1
    assert "PAGE_WEBHOOK_URL" in done.stderr
    assert words in done.stderr
    assert not (tmp_path / "out.yml").exists()


# --- runbooks -------------------------------------------------------------------------------------------------------

HEADINGS = ["Meaning", "Diagnosis", "Mitigation", "Verification"]


def test_there_is_a_runbook_for_each_alert_and_for_nothing_else() -> None:
    assert {path.stem for path in ALL_RUNBOOKS} - {"README", "disaster"} == {rule.name for rule in RULES}
    index = (RUNBOOKS / "README.md").read_text(encoding="utf-8")
    assert all(f"[{rule.name}]({os.path.relpath(ROOT / rule.texts.runbook, RUNBOOKS)})" in index for rule in RULES)


@pytest.mark.parametrize("runbook", sorted({rule.texts.runbook for rule in RULES}), ids=lambda name: Path(name).stem)
def test_a_runbook_says_what_to_do(runbook: str) -> None:
    text = (ROOT / runbook).read_text(encoding="utf-8")
    assert text.startswith(f"# {Path(runbook).stem}\n")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert [section.partition("\n")[0] for section in sections] == HEADINGS
    assert all(len(section.partition("\n")[2].strip()) > 15 for section in sections)
    assert "```bash" in sections[1]


def test_commands_of_the_runbooks_exist() -> None:
    """Checks the words after `aicli` as far as they are a command; tests/test_docs.py checks the options."""
    commands = set(re.findall(r"^## (aicli[a-z -]*)$", (docs.FOLDER / "cli.md").read_text(encoding="utf-8"), re.MULTILINE))
    for path in ALL_RUNBOOKS:
        for found in re.findall(r"\baicli(?: [a-z][a-z-]+)+", path.read_text(encoding="utf-8")):
            words = found.split()
            longest = max((n for n in range(2, len(words) + 1) if " ".join(words[:n]) in commands), default=0)
            assert longest, f"{path.name}: {found}"


def test_programs_of_the_stack_have_the_names_that_runbooks_give_them(tmp_path: Path) -> None:
    """There, a worker is called inference, which is easy to forget at night."""
    home = homes.locate({"AIMESH_HOME": str(tmp_path / "home")})
    made = initialization.ensure(home, {}, tmp_path)
    programs = {program.name for program in stack_plan.make(home, made.settings, made.recorded, {}).programs}
    text = "\n".join(path.read_text(encoding="utf-8") for path in ALL_RUNBOOKS)
    named = set(re.findall(r"\baicli stack (?:logs|restart) (\w[\w-]*)", text))
    assert len(named) > 5
    # The backup agent runs only with BACKUP_TO.
    assert named <= programs | {"backup"}


async def test_the_queries_of_the_runbooks_are_answered(postgres_url: str) -> None:
    async with gateway_store.opened(postgres_url):
        pass
    shown = {found for path in RUNBOOKS.glob("*.md") for found in re.findall(r"aicli stack psql [^`\n]*", path.read_text(encoding="utf-8"))}
    assert shown
    connection = await asyncpg.connect(postgres_url)
    try:
        for line in shown:
            words = shlex.split(line)
            for statement in (following for flag, following in itertools.pairwise(words) if flag == "-c"):
                await connection.fetch(statement)
    finally:
        await connection.close()
