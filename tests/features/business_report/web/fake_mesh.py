"""Statements of node owners as the gateway makes them, and pages that no tab leads to."""

import re
from typing import Any

from features.business_report import contract as api
from shared import errors
from shared.types import Credential, MicroCredits, UserRole

PATHS = ("/admin/report?by=user", "/admin/cost?mesh=30d", "/admin/nodes/statement")
#: What the pages of administrators may call.
READING = {"gateway.getOwnerStatements"}


class FakeStatements:
    #: By default the caller.
    statement_owner = ""
    energy_missing = ""
    _user: Any

    def _get_owner_statements(self, request: api.GetOwnerStatements, credential: Credential | None) -> api.OwnerStatements:
        user = self._user(credential)
        if not re.fullmatch("[0-9]{4}-[0-9]{2}", request.month):
            raise errors.BadRequest("no month", hint="write it like 2026-11")
        row = api.OwnerStatement(
            owner=self.statement_owner or user.username, requests=1221, prompt_tokens=700_000,
            completion_tokens=300_000, earned_micro=MicroCredits(2_442_000),
            earned_share=0.5 if user.role is UserRole.ADMIN else None, kwh=12.5, measured_by=("counter", "power"), energy_cost=3.75,
        )  # fmt: skip
        return api.OwnerStatements(request.month, (row,), self.energy_missing)


FAKE = FakeStatements
