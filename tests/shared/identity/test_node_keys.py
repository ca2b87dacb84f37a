"""Node keys: a signature is bound to its key, purpose and text, and the signed texts are frozen."""

from pathlib import Path

import msgpack
import nkeys
import pytest
from nacl.signing import SigningKey

from shared import errors
from shared.identity import node_keys
from shared.protocol import wire
from shared.protocol.wire import Hello
from shared.types import NodeId, Role

#: The raw key of the test vector: the bytes 0 to 31.
RAW = bytes(range(32))
NODE = NodeId("UAB2CB576PHBBPQ5ODORRZ2LYCMWPZGWGCN2KDK7DXOIMZASKUY3RLKK")
PEER = NodeId("UAU2ZOXBIG6MV4FSFYNJJU2NBPDTMHSSNUF74EWIS6KLZEZCSZW5PMRM")
LINK = 0x0123456789ABCDEF
HELLO = Hello(1, Role.WORKER, NODE, 1_767_225_600_000, "aimesh/0.1.0", b"")
SIGNATURE = bytes.fromhex(
    "4a5e2cd50c9b989fe884c1f3be7ec37c9852f93e43d0c15c52de10888e2db5adc3639426f0d8e3f73efb7f3488d2c1a2379e88626dab1fa2eab51cb1152ba607"
)


def test_the_signature_of_a_hello_never_changes() -> None:
    """Frozen: if the text changed, nodes of two versions would refuse each other."""
    key = node_keys.NodeKey(bytes(nkeys.encode_seed(RAW, nkeys.PREFIX_BYTE_USER)))
    assert key.id == NODE
    assert key.sign("hello", wire.hello_text(HELLO, PEER, LINK)) == SIGNATURE
    # The same text, made without our code.
    text = msgpack.packb([1, "worker", NODE, PEER, LINK, 1_767_225_600_000])
    assert SigningKey(RAW).sign(b"\xffaimesh/hello/1\x00" + text).signature == SIGNATURE


def test_a_certificate_can_be_added_to_a_hello_without_a_new_signature() -> None:
    """New fields are added at the end, so what this version signs and reads keeps its place."""
    plain = msgpack.unpackb(wire.encode(Hello(1, Role.WORKER, NODE, 1_767_225_600_000, "aimesh/0.1.0", SIGNATURE)))
    assert plain == [1, 1, "worker", NODE, 1_767_225_600_000, "aimesh/0.1.0", SIGNATURE, b"", 0, b"", 4096, ""]
    later = Hello(1, Role.WORKER, NODE, 1_767_225_600_000, "aimesh/0.2.0", SIGNATURE, b"certificate", 7)
    assert node_keys.verify(NODE, "hello", wire.hello_text(later, PEER, LINK), SIGNATURE)


def test_a_signature_is_valid_only_for_its_key_purpose_and_text() -> None:
    key, other = (node_keys.NodeKey(node_keys.new_seed()) for _ in range(2))
    signature = key.sign("hello", b"text")
    assert node_keys.verify(key.id, "hello", b"text", signature)
    assert not node_keys.verify(other.id, "hello", b"text", signature)
    assert not node_keys.verify(key.id, "receipt", b"text", signature)
    assert not node_keys.verify(key.id, "hello", b"texts", signature)
    assert not node_keys.verify(key.id, "hello", b"text", signature[:-1])


def test_a_nonce_signed_for_a_nats_server_never_passes_as_ours() -> None:
    """The server chooses the nonce, so it may be the very bytes that a HELLO covers, but not the purpose before them."""
    key = node_keys.NodeKey(node_keys.new_seed())
    assert not node_keys.verify(key.id, "hello", b"text", key.sign_bare(b"text"))


@pytest.mark.parametrize("node", ["", "U", "A" * 56, "U" * 56, "é" * 56, "ACSSQ6DDPCZ3HSUD3OGWPQAO4R2P3FXL5XGM5YFXD5VDHRYKMYLVXGPB"])
def test_an_invalid_node_id_has_signed_nothing(node: str) -> None:
    assert not node_keys.verify(NodeId(node), "hello", b"", b"\0" * 64)


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.nk"
    path.write_bytes(node_keys.new_seed() + b"\n")
    path.chmod(0o640)
    with pytest.raises(errors.BadSettings, match="can be read by others"):
        node_keys.load(path)
    path.chmod(0o600)
    assert node_keys.load(path).id.startswith("U")
    with pytest.raises(errors.BadSettings, match="cannot read"):
        node_keys.load(tmp_path / "nowhere")
    path.write_bytes(b"not a seed")
    with pytest.raises(errors.BadSettings, match="not an nkey seed"):
        node_keys.load(path)
