"""The list of the copies of models on machines."""

from collections.abc import Iterator
from typing import Literal

from shared.amounts import show_bytes, show_progress
from shared.api.deployments import CopyState, Deployment, ModelCopy
from shared.api.method import Body
from shared.lists import nodes
from shared.lists.columns import Column, Listing, Tone
from shared.types import ModelName, NodeId

_TONES = {CopyState.LOADED: Tone.GOOD, CopyState.STORED: Tone.GOOD, CopyState.COMING: Tone.WARN, CopyState.REFUSED: Tone.BAD}


class DeployedCopy(Body, frozen=True, omit_defaults=False):
    name: ModelName
    source: str
    wanted: int | Literal["all"]
    #: How many more machines the deployment needs.
    short: int
    #: None: no machine has or will have a copy.
    node: NodeId | None = None
    state: CopyState = CopyState.REFUSED
    done_bytes: int = 0
    total_bytes: int | None = None
    bytes_per_second: float = 0.0
    reason: str = ""
    from_peers_bytes: int = 0
    peers: int = 0


def rows(deployments: tuple[Deployment, ...]) -> Iterator[DeployedCopy]:
    for each in deployments:
        shared = each.document.source or "the mesh", each.document.copies, each.short
        for copy in each.copies:
            numbers = copy.done_bytes, copy.total_bytes, copy.bytes_per_second
            reason = "for a rollback" if copy.is_spare else copy.reason
            yield DeployedCopy(copy.model, *shared, copy.node, copy.state, *numbers, reason, copy.from_peers_bytes, copy.peers)
        if not each.copies:
            yield DeployedCopy(each.name, *shared, reason=each.problem or "no machine matches its labels and ids")


def describe(copy: ModelCopy | DeployedCopy) -> str:
    """Return the state in words, such as `coming, 3.0 GiB of 5.0 GiB, 60 %, 12.0 MiB/s, 2.0 GiB from other workers (4 now)`."""
    if copy.node is None:
        return "missing"
    if copy.state is not CopyState.COMING or not copy.done_bytes:
        return copy.state.value
    peers = f", {show_bytes(copy.from_peers_bytes)} from other workers ({copy.peers} now)" if copy.from_peers_bytes else ""
    return f"coming, {show_progress(copy.done_bytes, copy.total_bytes, copy.bytes_per_second)}{peers}"


COPIES: Listing[DeployedCopy] = Listing(
    columns=(
        Column(title="Model", show=lambda copy: copy.name, wraps=True),
        Column(title="Machine", show=lambda copy: None if copy.node is None else nodes.short(copy.node)),
        Column(title="State", show=describe, tone=lambda copy: _TONES[copy.state], wraps=True),
        Column(title="Wanted", show=lambda copy: copy.wanted, rank=2, is_number=True),
        Column(title="Short", show=lambda copy: copy.short or None, rank=3, is_number=True),
        Column(title="From", show=lambda copy: copy.source, rank=4, wraps=True),
        Column(title="Reason", show=lambda copy: copy.reason or None, wraps=True, below=True),
    ),
    empty="No deployments. Make one: aicli models deploy NAME SOURCE",
)
