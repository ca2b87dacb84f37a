"""The transport of our HTTP clients: httpx's, with one more failure reported as httpx's own."""

import httpx


class HttpTransport(httpx.AsyncHTTPTransport):
    """Raises ConnectError when the server resets a connection as soon as it is open.

    uvloop has no socket for such a connection, and anyio asks it for the address. Without this, a server that restarts at the wrong moment
    ends the task that sends, and the service with it.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except AttributeError as error:
            if error.name != "getpeername":
                raise
            raise httpx.ConnectError("the connection was reset as soon as it was open", request=request) from error
