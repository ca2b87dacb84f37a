"""What every command depends on: the environment, the current folder, and the connection to the mesh."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from shared import errors

if TYPE_CHECKING:
    from cli.connection import CliConnection, Connect
    from cli.profile import Profile
    from shared.api.method import Method, Reply, Request

T = TypeVar("T")

_NOT_LOGGED = (
    "This is done and in effect, but the recovery log on disk lacks it for now. Until it can, restoring an older database would undo"
    " it. Check the disk of RECOVERY_LOG_DIR."
)


@dataclass(frozen=True, slots=True)
class CliContext:
    """The object in click's context; tests replace it."""

    environment: Mapping[str, str]
    folder: Path
    #: None means the real mesh, which is imported on first use.
    connect: "Connect | None" = None

    def with_profile(self, name: str) -> "CliContext":
        return replace(self, environment={**self.environment, "AICLI_PROFILE": name})

    def path(self, written: "str | Path") -> Path:
        """Return the absolute path of what somebody wrote."""
        return (self.folder / Path(written).expanduser()).absolute()

    def profile(self, *, key_needed: bool = False) -> "Profile":
        """Load the profile. Raises BadSettings without one, NotAuthenticated if a key is needed and it has none."""
        from cli import profile

        found = profile.load(self.environment, self.folder)
        if key_needed and found.api_key is None:
            raise errors.NotAuthenticated("this profile has no API key", hint="aicli login, or set AICLI_API_KEY")
        return found

    def run(self, work: "Callable[[CliConnection], Awaitable[T]]", *, key_needed: bool = True) -> T:
        """Connect to the mesh, run ``work``, and disconnect. Ctrl-C raises KeyboardInterrupt after a clean disconnect."""
        return self.run_with(self.profile(key_needed=key_needed), work)

    def run_with(self, chosen: "Profile", work: "Callable[[CliConnection], Awaitable[T]]") -> T:
        """``run`` with another profile than the current one."""
        from cli import interrupts

        async def connected() -> T:
            async with self.connector()(chosen) as connection:
                return await work(connection)

        return interrupts.run(connected())

    def call(self, method: "Method[Request, Reply]", request: "Request", *, key_needed: bool = True) -> "Reply":
        reply = self.run(lambda connection: connection.call(method, request), key_needed=key_needed)
        if not getattr(reply, "logged", True):
            from cli.output import printing

            printing.note(_NOT_LOGGED)
        return reply

    def connector(self) -> "Connect":
        if self.connect is not None:
            return self.connect
        from cli import connection

        return connection.open_
