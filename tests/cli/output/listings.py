"""Every listing command, with a mesh that answers it; names contain wide characters, formulas and control characters."""

from collections.abc import Mapping
from datetime import UTC, datetime
from uuid import UUID

import click
import msgspec

from cli import main
from cli.doctor.findings import DoctorFinding
from shared.api import alerts, auth, metrics, model_trust
from shared.config_documents import TrustDocument, TrustMode
from shared.spans import Span, SpanKind
from shared.types import KeyId, UserId
from stack.status_overview import StatusRow
from tests.cli import command_lines
from tests.cli.fake_mesh import FakeMesh
from tests.shared.models.publishers import Publisher

#: A name that a user may choose.
NAME = "=漢字\x1b[31m"
#: The same name in CSV and in a table.
CSV_NAME, SHOWN_NAME = "'=漢字[31m", "=漢字[31m"
NOW = datetime.now(UTC)
KEY = auth.ApiKey(KeyId(UUID(int=3)), UserId(UUID(int=1)), NAME, "aip_live_abc…wxyz", is_active=True, created_at=NOW)
STATUS = StatusRow(NAME, "ready", True, NOW, 17, 0, "http://127.0.0.1:3000", "")
FINDING = DoctorFinding("gateway", True, NAME)
_SPAN = Span("a" * 32, "b" * 16, "", NAME, SpanKind.INTERNAL, 10**18, 10**18 + 5, "", {})


def commands(command: click.Command = main.aicli, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], set[str]]]:
    """Return every command with its options."""
    found = [(path, {name for parameter in command.params if not getattr(parameter, "hidden", False) for name in parameter.opts})]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            found += commands(below, (*path, name))
    return found


LISTINGS = tuple(path for path, options in commands() if "--watch" in options)
#: What a command needs.
ARGUMENTS: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("trace",): ("a" * 32,),
    ("report", "cost"): ("--by", "model"),
    ("report", "usage"): ("--by", "model"),
    ("admin", "routes", "show"): (NAME,),
    ("admin", "routes", "try"): (NAME,),
    ("admin", "rollouts", "show"): (NAME,),
}
#: What a list shows of its first row in place of the name.
FIRST: Mapping[tuple[str, ...], str] = {("profile", "list"): "lab"}


def answer_all(mesh: FakeMesh) -> None:
    command_lines.answer_all(mesh, NAME)
    # The parent of a sample would be the span itself.
    mesh.answer(metrics.get_trace, metrics.FoundTrace((metrics.TracedSpan("gateway", "node", _SPAN),)))
    rule = TrustDocument(mode=TrustMode.ENFORCE, keys=(Publisher().public,))
    mesh.answer(model_trust.read_model_trust, model_trust.ModelTrust({NAME: rule}))
    # Other states are only listed with --all.
    firing = msgspec.structs.replace(command_lines.sample(alerts.Alert, NAME), state="firing")
    mesh.answer(alerts.list_alerts, alerts.Alerts((firing,), ()))
