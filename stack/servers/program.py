"""What the supervisor runs: a program, how to ask whether it is ready, and how to stop it."""

import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CommandProbe:
    """Ready when the command ends with status 0."""

    command: tuple[str, ...]
    #: The status with which the command says that it got no answer at all.
    silence_status: int


@dataclass(frozen=True, slots=True)
class SocketProbe:
    """Ready when the server answers with ``expected``; ``place`` is a Unix socket or a loopback port."""

    place: Path | int
    question: bytes
    expected: bytes


@dataclass(frozen=True, slots=True)
class DatagramProbe:
    """Ready when each of these UDP ports answers the question with something that begins as expected."""

    host: str
    ports: tuple[int, ...]
    question: bytes
    expected: bytes


Probe = CommandProbe | SocketProbe | DatagramProbe


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    name: str
    command: tuple[str, ...]
    #: The whole environment; nothing of the supervisor's own is inherited.
    environment: dict[str, str]
    #: Programs of a higher stage start later and stop earlier. 0 is the servers.
    stage: int
    #: For servers; a service tells by its own /readyz.
    probe: Probe | None = None
    #: The services start when this server is ready; the others they find by themselves, sooner or later.
    is_waited_for: bool = True
    #: It ends when its standard input does, so it gets one that is open as long as we live.
    ends_with_stdin: bool = False
    #: Where its health is: the URL of a service's own HTTP port.
    url: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    grace_seconds: float = 30.0
    #: The exit status with which it says that its settings cannot work.
    hopeless_status: int | None = None
