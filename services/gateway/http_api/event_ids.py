"""The id of a server-sent event: whose answer it is of, and the number of its chunk there. Pure.

A client that lost its stream sends the last id that it saw as `Last-Event-ID`.
"""

import re

from services.gateway.admission.prompt_admission import BadField
from shared.api.gateway import Rest
from shared.types import RequestId

_ID = re.compile(r"(?P<request>[0-9a-f]{32})-(?P<number>[0-9]{1,9})\Z")


def write(request_id: RequestId, number: int) -> str:
    return f"{request_id.hex}-{number}"


def read(event_id: str) -> Rest:
    """What is left of its answer behind it. Raises BadRequest for what is no id of ours."""
    found = _ID.match(event_id)
    if found is None:
        raise BadField("Last-Event-ID", "is not the id of an event of this gateway; send the id as it came, or leave it out")
    return Rest(int(found["number"]))
