"""A document of the configuration whose current version this gateway can't read. Pure."""

from dataclasses import dataclass

from shared import errors
from shared.config_documents import Document
from shared.telemetry.version import version


@dataclass(frozen=True, slots=True)
class Unreadable:
    #: A ``ConfigKind``, or one that only a newer release knows.
    kind: str
    name: str
    version: int
    #: The oldest release that can read it; empty if nothing says so.
    release: str = ""
    #: The newest version that this gateway can read. Always None for a kind that restricts: an older version may be laxer.
    instead: Document | None = None

    def problem(self) -> errors.ConfigUnreadable:
        """Return the error for callers to whom the document applies."""
        newer = f"release {self.release}" if self.release else "the release that wrote it"
        return errors.ConfigUnreadable(
            f"this gateway (release {version()}) can't read the current {self.kind} {self.name!r} (version {self.version})",
            hint=f"use a gateway of {newer}, or ask an administrator: docs/runbooks/config_unreadable.md",
        )
