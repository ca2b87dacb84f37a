"""The fake mesh, business report of the gateway."""

from shared import errors
from shared.api import business
from shared.api.business import ActiveUsers, BusinessGrouping, BusinessReport, BusinessRow, BusinessSum, NewOfDay
from shared.types import Credential, MicroCredits
from tests.services.web.fake_mesh import FakeMesh

SUM = BusinessSum(
    succeeded=1200, failed=20, timed_out=1, limited=5, prompt_tokens=700_000, completion_tokens=300_000, cost_micro=MicroCredits(2_442_000),
    token_value_micro=MicroCredits(7_654_000),
    made_tokens=250, made_ms=8000, cached=305, saved_micro=MicroCredits(40_000), conversations=407, thumbs_up=3, thumbs_down=1, users=2,
)  # fmt: skip


class FakeReport(FakeMesh):
    """A test writes ``names``."""

    #: The names of the rows; None for the default, such as the ids of all users.
    names: tuple[str | None, ...] | None = None
    more = False
    #: Replaces the rows with those names.
    report_rows: list[BusinessRow] | None = None

    def _get_business_report(self, request: business.GetBusinessReport, credential: Credential | None) -> BusinessReport:
        self._admin(credential)
        names = self.names
        if names is None:
            of_users = request.by in (BusinessGrouping.USER, BusinessGrouping.OWNER)
            names = tuple(str(each.user.id) for each in self.accounts.values()) if of_users else (str(request.since),)
        total = SUM if names else BusinessSum()
        rows = tuple(BusinessRow(name, SUM) for name in names) if self.report_rows is None else tuple(self.report_rows)
        return BusinessReport(total, rows, self.more, MicroCredits(442_000 if names else 0), ActiveUsers(1, 2, 3, 1234))

    def _count_new_accounts(self, request: business.CountNewAccounts, credential: Credential | None) -> business.NewAccounts:
        self._admin(credential)
        return business.NewAccounts((NewOfDay(request.since, 2, 1),))

    def _name_users(self, request: business.NameUsers, credential: Credential | None) -> business.UserNames:
        self._admin(credential)
        if len(request.ids) > business.MAX_ROWS:
            raise errors.BadRequest("too many")
        users = [each.user for each in self.accounts.values()]
        return business.UserNames({str(user.id): user.username for user in users if user.id in request.ids})
