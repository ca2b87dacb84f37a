"""Who may call the methods of jobs, and open their pages."""

from shared.access_rules import person
from shared.types import Permission

_INFER = person(Permission.INFER)

METHODS = {
    "gateway.createBatch": _INFER,
    "gateway.listJobs": _INFER,
    "gateway.getJob": _INFER,
    "gateway.cancelJob": _INFER,
}
ROUTES = {
    "POST /api/jobs": _INFER,
    "GET /api/jobs": METHODS["gateway.listJobs"],
    "GET /api/jobs/{job}": METHODS["gateway.getJob"],
    "GET /api/jobs/{job}/result": METHODS["gateway.getJob"],
    "POST /api/jobs/{job}/cancel": METHODS["gateway.cancelJob"],
    "DELETE /api/jobs/{job}": METHODS["gateway.cancelJob"],
    "GET /v1/responses/{response}": METHODS["gateway.getJob"],
    "POST /v1/responses/{response}/cancel": METHODS["gateway.cancelJob"],
    "POST /v1/batches": METHODS["gateway.createBatch"],
    "GET /v1/batches": METHODS["gateway.listJobs"],
    "GET /v1/batches/{batch}": METHODS["gateway.getJob"],
    "POST /v1/batches/{batch}/cancel": METHODS["gateway.cancelJob"],
    "POST /v1/messages/batches": METHODS["gateway.createBatch"],
    "GET /v1/messages/batches": METHODS["gateway.listJobs"],
    "GET /v1/messages/batches/{batch}": METHODS["gateway.getJob"],
    "GET /v1/messages/batches/{batch}/results": METHODS["gateway.getJob"],
    "POST /v1/messages/batches/{batch}/cancel": METHODS["gateway.cancelJob"],
    "DELETE /v1/messages/batches/{batch}": METHODS["gateway.cancelJob"],
}
PAGES = {"/jobs": "person", "/live/jobs": "person"}
