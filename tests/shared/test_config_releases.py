"""The tables of releases agree with the previous release, whose own types read every sample here."""

import io
import json
import subprocess
import sys
import tarfile
from typing import Any

import msgspec
import pytest

from shared import config_releases
from shared.config_documents import BODIES, RESTRICTING, ConfigKind, Document
from tests.rolling import previous_release
from tests.stacks import REPOSITORY

PREVIOUS = "0.3.0"
#: Run with the sources of the previous release: print the schema, and for each sample whether it can be read.
PROGRAM = """
import json, sys
import msgspec
from shared.config_documents import BODIES

def reads(kind, body):
    try:
        msgspec.json.decode(body, type={kind.value: body for kind, body in BODIES.items()}[kind])
    except (KeyError, msgspec.DecodeError):
        return False
    return True

schema = msgspec.json.schema_components(BODIES.values())[1]
print(json.dumps([schema, [reads(*sample) for sample in json.load(sys.stdin)]]))
"""
#: A document for each field that a later release added, and for values that only a later release reads.
SAMPLES: dict[str, tuple[ConfigKind, str, str, str]] = {
    "a policy": (ConfigKind.POLICY, "mesh", '{"machines": "own", "guard": {"prompt": {"email": "refuse"}}}', "0.3.0"),
    "flex": (ConfigKind.POLICY, "mesh", '{"flex": "never"}', "0.4.0"),
    "stored prompts": (ConfigKind.POLICY, "mesh", '{"stored_prompts": "24h"}', "0.4.0"),
    "a route": (ConfigKind.ROUTE, "a", '{"targets": [{"name": "x", "model": "m", "when": {"tiers": ["pro"]}}]}', "0.3.0"),
    "a route for a plan": (ConfigKind.ROUTE, "a", '{"targets": [{"name": "x", "model": "m", "when": {"tiers": ["gold"]}}]}', "0.4.0"),
    "a plan": (ConfigKind.PLAN, "free", '{"requests_per_minute": 4, "concurrency": "unlimited"}', "0.3.0"),
    "files": (ConfigKind.PLAN, "free", '{"file_bytes": 4}', "0.4.0"),
    "a fee": (ConfigKind.PLAN, "pro", '{"fee": 4}', "0.4.0"),
    "limits of a model": (ConfigKind.MODEL_LIMIT, "m", '{"tokens_per_day": 4}', "0.3.0"),
    "a server": (ConfigKind.SERVER, "vllm", '{"url": "http://10.0.0.5"}', "0.4.0"),
    "trust": (ConfigKind.TRUST, "llama*", '{"mode": "warn"}', "0.4.0"),
    "a price": (ConfigKind.UPSTREAM_PRICE, "m", '{"input": 1, "output": "2.5"}', "0.3.0"),
    "a default": (ConfigKind.DEFAULT_MODEL, "default", '{"model": "m"}', "0.3.0"),
    "a deployment": (ConfigKind.DEPLOYMENT, "m", '{"copies": 2}', "0.4.0"),
}
#: Fields that read more values than before; ``_releases_of`` looks at the values.
WIDER = {("TargetConditions", "tiers")}


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[bool]]:
    """The schema of the previous release, and which samples it reads."""
    folder = tmp_path_factory.mktemp("previous")
    command = ["git", "archive", previous_release.COMMIT, "shared"]
    archive = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"git has no commit {previous_release.COMMIT[:12]} here: {archive.stderr.decode().strip()[:200]}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    samples = json.dumps([(kind, body) for kind, _, body, _ in SAMPLES.values()])
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=folder, input=samples, capture_output=True, text=True, check=True)
    schema, reads = json.loads(done.stdout)
    return schema, reads


def decode(kind: ConfigKind, body: str) -> Document:
    return msgspec.json.decode(body, type=BODIES[kind])


def test_every_field_that_was_added_has_its_release(previous: tuple[dict[str, Any], list[bool]]) -> None:
    before, now = previous[0], json.loads(json.dumps(msgspec.json.schema_components(BODIES.values())[1]))
    added = {kind.__name__: set(fields) for kind, fields in config_releases.FIELDS.items()}
    new_kinds = {BODIES[kind].__name__ for kind in config_releases.KINDS}
    for name, schema in now.items():
        if name not in before:
            # Types of new kinds, and of new fields.
            continue
        fields, old = schema.get("properties", {}), before[name].get("properties", {})
        assert fields.keys() - old.keys() == added.pop(name, set()), name
        changed = {field for field in fields.keys() & old.keys() if fields[field] != old[field]}
        assert {(name, field) for field in changed} <= WIDER
        assert schema.get("enum") == before[name].get("enum"), f"{name} has other values: see config_releases"
    assert added == {}
    assert new_kinds == {body.__name__ for body in BODIES.values()} - before.keys()


def test_the_previous_release_reads_what_the_tables_say(previous: tuple[dict[str, Any], list[bool]]) -> None:
    for (what, (kind, name, body, release)), reads in zip(SAMPLES.items(), previous[1], strict=True):
        assert config_releases.find_oldest_reader(kind, name, decode(kind, body)) == release, what
        assert reads is not config_releases.is_older(PREVIOUS, release), what


def test_only_what_restricts_keeps_a_release_out() -> None:
    for kind, name, body, release in SAMPLES.values():
        assert config_releases.find_needed(kind, name, decode(kind, body)) == (release if kind in RESTRICTING else "0.3.0")
    assert config_releases.find_needed(ConfigKind.TRUST, "llama*", None) == "0.3.0", "it was removed"
    assert config_releases.find_needed(ConfigKind.PLAN, "gold", decode(ConfigKind.PLAN, "{}")) == "0.4.0"


@pytest.mark.parametrize(
    ("release", "than", "is_older"),
    [
        ("0.3.0", "0.4.0", True),
        ("0.4.0", "0.4.0", False),
        ("0.10.0", "0.9.1", False),
        ("unknown", "0.3.0", True),
        ("0.4.0.dev1", "0.4.0", False),
    ],
)
def test_releases_are_compared_by_their_numbers(release: str, than: str, is_older: bool) -> None:
    assert config_releases.is_older(release, than) is is_older
