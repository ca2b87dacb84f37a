"""A program of the supervisor: its command, how to check that it is ready, and how to stop it."""

import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CommandProbe:
    """Ready if the command ends with status 0."""

    command: tuple[str, ...]
    #: The status with which the command reports that the server did not answer.
    silence_status: int


@dataclass(frozen=True, slots=True)
class SocketProbe:
    """Ready if the server answers with ``expected``; ``place`` is a Unix socket or a loopback port."""

    place: Path | int
    question: bytes
    expected: bytes


@dataclass(frozen=True, slots=True)
class DatagramProbe:
    """Ready if each of these UDP ports answers the question as expected."""

    host: str
    ports: tuple[int, ...]
    question: bytes
    expected: bytes


Probe = CommandProbe | SocketProbe | DatagramProbe


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    name: str
    command: tuple[str, ...]
    #: The whole environment; the supervisor's own is not inherited.
    environment: dict[str, str]
    #: Programs of a higher stage start later and stop earlier. Servers are at 0.
    stage: int
    #: Only for servers; services have /readyz.
    probe: Probe | None = None
    #: The services wait for this server before they start; they find the others later themselves.
    is_waited_for: bool = True
    #: It exits when its standard input closes, so we keep that open as long as we run.
    ends_with_stdin: bool = False
    #: The URL of a service's own HTTP port.
    url: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    grace_seconds: float = 30.0
    #: The exit status for settings that cannot work.
    hopeless_status: int | None = None
    #: Its working folder; None for that of our packages.
    folder: Path | None = None
