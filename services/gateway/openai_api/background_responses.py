"""What runs responses that nobody waits for."""

from typing import Protocol

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api.http_call import HttpCall
from services.gateway.openai_api.response_request import ResponseBody
from shared import errors


class Background(Protocol):
    async def begin(self, call: HttpCall, body: ResponseBody) -> None:
        """Let a request run that nobody waits for, and answer with how it can be found. Raises BadField for one that can't."""
        ...

    async def delete(self, call: HttpCall) -> None:
        """Delete the response that the path names, and cancel it if it runs. Raises NotFound."""
        ...


class NoBackground:
    async def begin(self, call: HttpCall, body: ResponseBody) -> None:
        raise BadField("background", "is not possible: this mesh runs no jobs; leave it out, and wait for the answer")

    async def delete(self, call: HttpCall) -> None:
        raise errors.NotFound(f"there is no stored response {call.rest_of_path[:60]!r}", hint="keep the response yourself")
