"""How far copies of models are, in words."""

from shared.api.deployments import CopyState, ModelCopy
from shared.lists import deployments
from shared.types import ModelName, NodeId

LLAMA, NODE = ModelName("llama3@1"), NodeId("ULARGE0001")


def test_a_copy_that_is_coming_says_how_much_other_workers_gave() -> None:
    coming = ModelCopy(NODE, CopyState.COMING, LLAMA, 3 << 30, 5 << 30, 12 << 20, from_peers_bytes=2 << 30, peers=4)
    assert deployments.describe(coming) == "coming, 3.0 GiB of 5.0 GiB, 60 %, 12.0 MiB/s, 2.0 GiB from other workers (4 now)"
    assert deployments.describe(ModelCopy(NODE, CopyState.STORED, LLAMA)) == "stored"
