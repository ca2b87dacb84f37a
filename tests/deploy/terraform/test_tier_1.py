"""The commands, variables and files that start our services in tier 1."""

import re
import subprocess
from pathlib import Path

import yaml

from tests.deploy.terraform import hcl

TIER_1 = hcl.FOLDER / "examples/tier-1"


def settings() -> set[str]:
    names = set(re.findall(r"^\| `([A-Z_]+)`", (hcl.ROOT / "docs/reference/settings.md").read_text(encoding="utf-8"), re.M))
    return names | {name.removesuffix("_FILE") for name in names}


def test_each_variable_of_a_service_is_a_setting() -> None:
    known = hcl.load(TIER_1).locals
    named = known["node"].keys() | known["secrets"]["frontend"].keys() | known["secrets"]["backend"].keys() | {"GATEWAY_URL", "PUBLIC_URL"}
    # The command writes these two into files, and unsets them.
    for name in ("JOIN_TICKET", "PRIVATE_CAS"):
        assert re.search(rf'echo \\?"\${name}\\?" >/tmp/.*unset[^;]*\b{name}\b', known["join"]), known["join"]
    assert named - {"JOIN_TICKET", "PRIVATE_CAS"} <= settings()


def test_the_commands_make_private_files_and_a_journal_for_each_instance(tmp_path: Path) -> None:
    known = hcl.load(TIER_1).locals
    journal = known["journal"].replace("$${", "${").replace("/journal/", f"{tmp_path}/journal/")
    script = (
        known["join"].replace("/tmp/", f"{tmp_path}/")
        + journal
        + ' echo "$JOURNAL_FILE ${JOIN_TICKET-gone}"; stat -c %a '
        + f"{tmp_path}/ticket"
    )
    (tmp_path / "journal").mkdir()
    environment = {"PATH": "/usr/bin:/bin", "JOIN_TICKET": "ticket", "PRIVATE_CAS": "first\nsecond"}
    runs = [
        subprocess.run(["sh", "-ec", script], env=environment, capture_output=True, text=True, check=True, timeout=10) for _ in range(2)
    ]
    assert (tmp_path / "ticket").read_text() == "ticket\n"
    assert (tmp_path / "cas.pem").read_text() == "first\nsecond\n"
    (first, mode), (second, _) = (run.stdout.splitlines() for run in runs)
    assert (mode, first.split()[1]) == ("600", "gone")
    assert first != second
    assert len(list((tmp_path / "journal").iterdir())) == 2


def test_the_machine_changes_services_that_compose_has() -> None:
    changed = yaml.safe_load((TIER_1 / "compose.yaml").read_text(encoding="utf-8"))["services"]
    compose = yaml.safe_load((hcl.ROOT / "compose.yaml").read_text(encoding="utf-8"))
    assert changed.keys() == {"nats", "auth", "metrics"} <= compose["services"].keys()
    assert {name for service in changed.values() for name in service.get("environment", {})} <= settings()
    assert set(changed["nats"]["networks"]) <= compose["networks"].keys()
    # The first arguments are those of compose.yaml.
    assert changed["nats"]["command"][:2] == compose["services"]["nats"]["command"]


def test_the_startup_script_gets_its_values_and_is_bash() -> None:
    script = (TIER_1 / "mesh.sh").read_text(encoding="utf-8")
    template = hcl.load(TIER_1).blocks["google_compute_instance.mesh"].body["metadata"]["startup-script"]
    given = set(re.findall(r"^\s+(\w+)\s+=", template, re.M))
    assert set(re.findall(r"\$\{(\w+)\}", script)) == given == {"address", "connectors"}
    assert "%{" not in script
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False, timeout=10)
    assert done.returncode == 0, done.stderr
