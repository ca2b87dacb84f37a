"""Reads a request of the Responses API with what is stored and it refers to: items, and the conversation that it continues."""

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api.http_call import HttpCall
from services.gateway.idempotency.stored_items import StoredItems
from services.gateway.openai_api import response_request
from services.gateway.openai_api.response_request import ResponseBody

_PREVIOUS = "previous_response_id"
_SEND_ALL = "send the whole conversation as input, with `store: false`"


async def read(call: HttpCall, items: StoredItems) -> ResponseBody:
    """Raises BadRequest, and what ``StoredItems.find`` raises."""
    body = await call.read(response_request.DIALECT)
    found = await items.find(call.caller, references) if (references := body.references) else {}
    settled = await call.convert(lambda body: body.settled(found), body)
    if (previous := body.previous_response_id) is None:
        return settled
    if not items.allows_prompts(call.caller):
        raise BadField(_PREVIOUS, f"needs an earlier prompt, and the mesh's policy does not say `stored_prompts: 24h`; {_SEND_ALL}")
    earlier = await items.find_conversation(call.caller, previous)
    if earlier is None:
        raise BadField(_PREVIOUS, f"names no response that is stored: they are kept for a day, unless they are too long; {_SEND_ALL}")
    return await call.convert(lambda body: body.continuing(earlier), settled)
