"""A provider with the names and types of Google's that creates nothing: Terraform itself then evaluates, plans and applies our files.

It speaks version 5 of the plugin protocol. It needs few of the messages, so it encodes them itself. Unlike the real provider, it
checks no values and knows no conflicts between arguments.
"""

import json
import re
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import msgspec

from tests.deploy.terraform import provider_types
from tests.deploy.terraform.provider_types import Argument, Kind

_UNKNOWN = msgspec.msgpack.Ext(0, b"\0")
#: Arguments that the provider fills in when they are missing.
_FILLED = frozenset({"id", "project", "address"})
_TYPES = {"string": "string", "number": "number", "boolean": "bool", "string[]": ["list", "string"], "number[]": ["list", "number"]}
_LIST = 2


def _field(number: int, value: bytes | str | int) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value) if value else b""
    body = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _read(message: bytes) -> dict[int, bytes]:
    """Return the fields that contain bytes; numbers are not needed."""
    found, at = {}, 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag, value = number(), number()
        if tag & 7 == 2:
            found[tag >> 3] = message[at : at + value]
            at += value
    return found


def _type(text: str) -> Any:
    plain = text.replace(" | cdktf.IResolvable", "")
    return _TYPES.get(plain, ["map", "string"] if plain.startswith("{") else "dynamic")


def _attribute(name: str, type_: str, *, required: bool = False, optional: bool = False, computed: bool = False) -> bytes:
    return _field(
        2, _field(1, name) + _field(2, json.dumps(_type(type_))) + _field(4, required) + _field(5, optional) + _field(6, computed)
    )


def _block(kind: Kind, arguments: tuple[Argument, ...], outside: tuple[str, ...] = ()) -> bytes:
    out = b""
    for each in arguments:
        if each.block is None:
            out += _attribute(each.name, each.type, required=each.required, optional=not each.required, computed=is_filled(each))
        elif each.block not in outside:
            inner = _block(kind, kind.interfaces[each.block], (*outside, each.block))
            most = 0 if each.type.startswith(f"{each.block}[]") else 1
            out += _field(3, _field(1, each.name) + _field(2, inner) + _field(3, _LIST) + _field(4, each.required) + _field(5, most))
    return out


def is_filled(argument: Argument) -> bool:
    return argument.name in _FILLED and not argument.required


def _computed(kind: Kind) -> dict[str, str]:
    given = {argument.name for argument in kind.interfaces[kind.root] if not is_filled(argument)}
    return {name: type_ for name, type_ in kind.attributes.items() if name not in given and not name.endswith("_input")}


def _schema(kind: Kind) -> bytes:
    root = kind.interfaces[kind.root]
    known = {argument.name for argument in root}
    attributes = b"".join(_attribute(name, type_, computed=True) for name, type_ in _computed(kind).items() if name not in known)
    return _field(2, _block(kind, root) + attributes)


class StandIn:
    def __init__(self, resources: set[str], data: set[str]) -> None:
        self._resources = {name: kind for name in resources if (kind := provider_types.read(name))}
        self._data = {name: kind for name in data if (kind := provider_types.read(f"data_{name}"))}
        self._numbers = count(1001)

    @contextmanager
    def running(self, socket: Path) -> Iterator[str]:
        """Serve on the socket; yields the value of TF_REATTACH_PROVIDERS."""
        methods: dict[str, Callable[[dict[int, bytes]], bytes]] = {
            "GetSchema": self._get_schema,
            "PrepareProviderConfig": lambda request: _field(1, request[1]),
            "UpgradeResourceState": lambda request: _field(1, _field(2, _read(request[3])[1])),
            "ReadResource": lambda request: _field(1, request[2]),
            "PlanResourceChange": self._plan,
            "ApplyResourceChange": self._apply,
            "ReadDataSource": self._read_data,
        }
        silent = ("Configure", "ValidateResourceTypeConfig", "ValidateDataSourceConfig", "Stop")
        handlers = {name: _handler(method) for name, method in (methods | dict.fromkeys(silent, lambda _: b"")).items()}
        server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_send_message_length", -1)])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tfplugin5.Provider", handlers),))
        server.add_insecure_port(f"unix:{socket}")
        server.start()
        address = {"Network": "unix", "String": str(socket)}
        try:
            yield json.dumps(
                {"hashicorp/google": {"Protocol": "grpc", "ProtocolVersion": 5, "Pid": 1, "Test": True, "Addr": address}},
            )
        finally:
            server.stop(None).wait(10)

    def _get_schema(self, _: dict[int, bytes]) -> bytes:
        provider = _field(2, _attribute("project", "string", optional=True))
        schemas = ((2, self._resources), (3, self._data))
        entries = (_field(field, _field(1, name) + _field(2, _schema(kind))) for field, kinds in schemas for name, kind in kinds.items())
        return _field(1, provider) + b"".join(entries)

    def _plan(self, request: dict[int, bytes]) -> bytes:
        before, planned = _decode(request[2]), _decode(request[3])
        if before is None and planned is not None:
            for name in _computed(self._resources[request[1].decode()]):
                planned[name] = _UNKNOWN if planned.get(name) is None else planned[name]
        return _field(1, _encode(planned)) + _field(5, 1)

    def _apply(self, request: dict[int, bytes]) -> bytes:
        kind, state = request[1].decode(), _decode(request[3])
        for name, value in (state or {}).items():
            if isinstance(value, msgspec.msgpack.Ext):
                state[name] = self._make(kind, name)
        return _field(1, _encode(state)) + _field(4, 1)

    def _make(self, kind: str, name: str) -> Any:
        number = next(self._numbers)
        match _type(self._resources[kind].attributes[name]):
            case "string":
                return f"10.64.0.{number % 100}" if "address" in name or name == "host" else f"{kind}/{name}/{number}"
            case "number":
                return number
            case "bool":
                return False
            case "dynamic" if name == "status":
                return [b'["list",["object",{"url":"string"}]]', [{"url": f"https://run-{number}.example"}]]
        return None

    def _read_data(self, request: dict[int, bytes]) -> bytes:
        kind, state = self._data[request[1].decode()], _decode(request[2])
        for name, type_ in _computed(kind).items():
            if _type(type_) == "string" and state[name] is None:
                state[name] = "123456" if name == "number" else name
        return _field(1, _encode(state))


def _handler(method: Callable[[dict[int, bytes]], bytes]) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(lambda message, _: method(_read(message)))


def _decode(dynamic: bytes) -> Any:
    return msgspec.msgpack.decode(_read(dynamic)[1])


def _encode(value: Any) -> bytes:
    return _field(1, msgspec.msgpack.encode(value))


def used(text: str) -> "StandIn":
    """Return a stand-in with the resources and data sources that these files name."""
    found = re.findall(r'^(resource|data) "(google_\w+)"', text, re.M)
    return StandIn(*({name for kind, name in found if kind == wanted} for wanted in ("resource", "data")))
