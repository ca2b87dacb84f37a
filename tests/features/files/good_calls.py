"""Valid calls of the routes of files, for schemathesis."""

from collections.abc import Callable, Mapping
from typing import Any

import httpx


async def good_calls(http: httpx.AsyncClient) -> Mapping[str, Callable[[], Mapping[str, Any]]]:
    made = [await http.post("/v1/files", files={"file": b"hi"}, data={"purpose": "user_data"}) for _ in range(4)]
    files = [str(each.raise_for_status().json()["id"]) for each in made]
    return {
        "POST /v1/files": lambda: {"file": "hi", "purpose": "user_data"},
        "GET /v1/files/{file}": lambda: {"file": files[0]},
        "GET /v1/files/{file}/content": lambda: {"file": files[0]},
        "DELETE /v1/files/{file}": lambda: {"file": files.pop() if len(files) > 1 else "gone"},
        "POST /v1/uploads/{upload}": lambda: {"upload": "upload_1/parts"},
    }
