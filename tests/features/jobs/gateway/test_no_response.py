"""Responses that nobody ordered."""

import httpx
import pytest


@pytest.mark.parametrize(("verb", "end"), [("GET", ""), ("GET", "/input_items"), ("POST", "/cancel")])
async def test_what_needs_a_stored_prompt_is_refused_with_the_reason(http: httpx.AsyncClient, verb: str, end: str) -> None:
    answer = await http.request(verb, f"/v1/responses/resp_1{end}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert "those in the background are stored" in answer.json()["error"]["message"]
    assert (await http.request(verb, f"/v1/responses/resp_1{end}", headers={"authorization": "Bearer x"})).status_code == 401
