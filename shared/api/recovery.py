"""auth, gateway: the recovery log, which the backup agent copies."""

from shared.api.method import Body, Nothing, StreamMethod
from shared.types import Role

_AGENT = {Role.BACKUP}


class FollowRecoveryLog(Body, frozen=True):
    #: The number of the last line that the caller has; 0 for all lines.
    after: int = 0


class RecoveryLines(Body, frozen=True, omit_defaults=False):
    """Successive lines of a service's recovery log."""

    first: int
    last: int
    #: Signed JSON lines, as in the service's file.
    lines: bytes


#: Send the lines after a number, then every new one at once. They end when the service shuts down.
follow_auth_log = StreamMethod("auth.followRecoveryLog", FollowRecoveryLog, item=RecoveryLines, end=Nothing, callers=_AGENT)
follow_gateway_log = StreamMethod("gateway.followRecoveryLog", FollowRecoveryLog, item=RecoveryLines, end=Nothing, callers=_AGENT)
