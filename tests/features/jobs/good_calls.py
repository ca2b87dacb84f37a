"""Valid calls of the routes of jobs, for schemathesis."""

from collections.abc import Callable, Mapping
from typing import Any

import httpx

LINE = b'{"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"prompt": "hi", "model": "echo"}}'


async def good_calls(http: httpx.AsyncClient) -> Mapping[str, Callable[[], Mapping[str, Any]]]:
    async def made(path: str, **request: Any) -> str:
        return str((await http.post(path, **request)).raise_for_status().json()["id"])

    job = {"endpoint": "/v1/completions", "body": {"prompt": "hi", "model": "echo"}}
    lines = await made("/v1/files", files={"file": LINE}, data={"purpose": "batch"})
    batch = {"input_file_id": lines, "endpoint": "/v1/completions", "completion_window": "24h"}
    batch_id = await made("/v1/batches", json=batch)
    prompt = {"custom_id": "1", "params": {"model": "echo", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}}
    message_batches = [await made("/v1/messages/batches", json={"requests": [prompt]}) for _ in range(4)]
    jobs = [await made("/api/jobs", json=job) for _ in range(4)]
    response = await made("/v1/responses", json={"input": "hi", "model": "echo", "background": True})
    return {
        "GET /v1/responses/{response}": lambda: {"response": response},
        "POST /v1/responses/{response}/cancel": lambda: {"response": response},
        "POST /v1/messages/batches": lambda: {"requests": [prompt]},
        "GET /v1/messages/batches/{batch}": lambda: {"batch": message_batches[0]},
        "GET /v1/messages/batches/{batch}/results": lambda: {"batch": message_batches[1]},
        "POST /v1/messages/batches/{batch}/cancel": lambda: {"batch": message_batches[0]},
        "DELETE /v1/messages/batches/{batch}": lambda: {"batch": message_batches.pop() if len(message_batches) > 2 else "gone"},
        "POST /v1/batches": lambda: batch,
        "GET /v1/batches/{batch}": lambda: {"batch": batch_id},
        "POST /v1/batches/{batch}/cancel": lambda: {"batch": batch_id},
        "POST /api/jobs": lambda: job,
        "GET /api/jobs/{job}": lambda: {"job": jobs[0]},
        "GET /api/jobs/{job}/result": lambda: {"job": jobs[1]},
        "POST /api/jobs/{job}/cancel": lambda: {"job": jobs[0]},
        "DELETE /api/jobs/{job}": lambda: {"job": jobs.pop() if len(jobs) > 2 else "gone"},
    }
