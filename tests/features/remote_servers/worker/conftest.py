import pytest

from features.remote_servers.worker import http_server_client


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server_client, "BACKOFF_SECONDS", 0.001)
