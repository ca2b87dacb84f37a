"""The tables of the audit log on a real PostgreSQL."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.auth import store
from services.auth.audit.anchoring import Anchoring
from services.auth.audit.audit_store import AuditStore
from services.auth.audit.verification import Verification
from shared.audit_anchors import AnchorKeys
from shared.telemetry import Metrics
from shared.types import MeshName

KEYS = AnchorKeys.of(bytes(range(32)))


@pytest.fixture
async def rows(postgres_url: str) -> AsyncIterator[AuditStore]:
    async with store.opened(postgres_url) as database:
        yield AuditStore(database)


@pytest.fixture
def anchor_file(tmp_path: Path) -> Path:
    return tmp_path / "anchors.jsonl"


@pytest.fixture
def anchoring(rows: AuditStore, anchor_file: Path) -> Anchoring:
    return Anchoring(rows, KEYS, MeshName("test"), anchor_file)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("auth")


@pytest.fixture
def verification(rows: AuditStore, anchoring: Anchoring, metrics: Metrics) -> Verification:
    return Verification(rows, anchoring, metrics)
