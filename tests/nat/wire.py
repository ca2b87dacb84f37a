"""`python -m tests.nat.wire MILLISECONDS NAMESPACE,DEVICE,ADDRESS…` joins TUN devices: each packet reaches the device with the address
that it is for after that time. For kernels without netem; runs until it is killed."""

import ctypes
import fcntl
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from contextlib import suppress

from tests.nat.topology import NAMESPACES

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
#: Taken from one device before the next one's turn.
_MAX_PACKETS = 64


def _attach(place: str, device: str) -> int:
    """Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (NAMESPACES / place).open("rb") as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {place}")
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI))
    return handle


def _main(milliseconds: float, ends: list[str]) -> None:
    devices, poll = dict[bytes, int](), select.epoll()
    for end in ends:
        place, device, *addresses = end.split(",")
        handle = _attach(place, device)
        poll.register(handle, select.EPOLLIN)
        devices |= {socket.inet_aton(address): handle for address in addresses}
    print("ready", flush=True)
    under_way = deque[tuple[float, int, bytes]]()
    while True:
        pause = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        for handle, _ in poll.poll(pause):
            for _ in range(_MAX_PACKETS):
                try:
                    packet = os.read(handle, 65536)
                except BlockingIOError:
                    break
                if (to := devices.get(packet[16:20])) is not None:
                    under_way.append((time.monotonic() + milliseconds / 1000, to, packet))
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            _, to, packet = under_way.popleft()
            with suppress(OSError):  # its queue is full
                os.write(to, packet)


if __name__ == "__main__":
    _main(float(sys.argv[1]), sys.argv[2:])
