"""The list of the servers that administrators have added."""

from shared.api.servers import ServerRow
from shared.lists.columns import Column, Listing, Tone

SERVERS: Listing[ServerRow] = Listing(
    columns=(
        Column(title="Server", show=lambda server: server.name, wraps=True),
        Column(title="URL", show=lambda server: server.url, wraps=True),
        Column(title="Kind", show=lambda server: server.kind, rank=4),
        Column(title="Key", show=lambda server: "Yes" if server.has_key else "No", rank=5),
        Column(
            title="State",
            show=lambda server: "OK" if not server.trouble else "Degraded" if server.workers else "Down",
            tone=lambda server: Tone.GOOD if not server.trouble else Tone.WARN if server.workers else Tone.BAD,
        ),
        Column(title="Problem", show=lambda server: server.trouble or None, wraps=True),
        Column(title="Models", show=lambda server: server.models, rank=3, wraps=True),
        Column(title="Workers", show=lambda server: server.workers, rank=2, is_number=True),
    ),
    empty="No servers.",
)
