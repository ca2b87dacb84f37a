"""Reads a request of the Responses API with the stored items that it refers to."""

from services.gateway.http_api.http_call import HttpCall
from services.gateway.idempotency.stored_items import StoredItems
from services.gateway.openai_api import response_request
from services.gateway.openai_api.response_request import ResponseBody


async def read(call: HttpCall, items: StoredItems) -> ResponseBody:
    """Raises BadRequest, and what ``StoredItems.find`` raises."""
    body = await call.read(response_request.DIALECT)
    found = await items.find(call.caller, references) if (references := body.references) else {}
    return await call.convert(lambda body: body.settled(found), body)
