"""The requests of the access matrix for jobs."""

from collections.abc import Callable
from typing import Any

from features.jobs import contract

NO_FILE, NO_JOB = f"file-{'a' * 26}", f"batch_{'a' * 26}"

REQUESTS: dict[str, Callable[[], Any]] = {
    "gateway.createBatch": lambda: contract.CreateBatch(NO_FILE, "/v1/completions"),
    "gateway.getJob": lambda: contract.GetJob(NO_JOB),
    "gateway.cancelJob": lambda: contract.CancelJob(NO_JOB),
}
BODIES: dict[str, Callable[[], Any]] = {
    "POST /api/jobs": lambda: {"endpoint": "/v1/completions", "body": {"prompt": "hi", "model": "echo"}},
    "GET /api/jobs": lambda: None,
    "GET /api/jobs/{job}": lambda: None,
    "GET /api/jobs/{job}/result": lambda: None,
    "POST /api/jobs/{job}/cancel": dict,
    "DELETE /api/jobs/{job}": lambda: None,
    "POST /v1/responses/{response}/cancel": dict,
    "GET /v1/responses/{response}": lambda: None,
    "POST /v1/batches": lambda: {"input_file_id": NO_FILE, "endpoint": "/v1/embeddings", "completion_window": "24h"},
    "GET /v1/batches": lambda: None,
    "GET /v1/batches/{batch}": lambda: None,
    "POST /v1/batches/{batch}/cancel": dict,
    "POST /v1/messages/batches": lambda: {"requests": [{"custom_id": "a", "params": {"model": "none"}}]},
    "GET /v1/messages/batches": lambda: None,
    "GET /v1/messages/batches/{batch}": lambda: None,
    "GET /v1/messages/batches/{batch}/results": lambda: None,
    "POST /v1/messages/batches/{batch}/cancel": dict,
    "DELETE /v1/messages/batches/{batch}": lambda: None,
}
