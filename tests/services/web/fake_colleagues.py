"""The fake mesh, colleague part of auth: invitations to the mesh itself."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import msgspec

from shared import errors
from shared.api import auth
from shared.api import organizations as api
from shared.api import service_settings as contract
from shared.api.method import Nothing
from shared.types import Credential, UserRole

NOW = datetime(2026, 11, 20, 14, 5, tzinfo=UTC)


class FakeColleagues:
    """Handlers, mixed into ``FakeAccounts``. A test reads and writes the attributes."""

    def __init__(self) -> None:
        super().__init__()
        #: Code -> open invitation.
        self.colleagues: dict[str, api.ColleagueInvitation] = {}
        self.sends_mail = True
        #: The same for every user.
        self.setup = contract.SetupFacts(
            has_second_factor=False, is_dismissed=False, public_url="", has_mail_server=False, mail_tested_at=None,
            open_registration=True, is_registration_confirmed=False, colleagues=0, invitations=0,
        )  # fmt: skip
        self.mail_result = contract.MailTestResult(True, "2.0.0 Ok: queued as 4711")

    def add_colleague(self, code: str, email: str, role: UserRole = UserRole.USER, organisation: str = "") -> api.ColleagueInvitation:
        made = api.ColleagueInvitation(str(uuid4()), email, role, "alice", NOW, NOW + timedelta(days=7), organisation)
        self.colleagues[code] = made
        return made

    def _invite_colleague(self, request: api.InviteColleague, credential: Credential | None) -> api.InvitedColleague:
        self._check_fresh("auth.inviteColleague")
        self._user(credential)
        if "@" not in request.email:
            raise errors.BadRequest("email: an address such as you@example.com", hint="check the address")
        made = self.add_colleague("code-of-a-colleague", request.email, request.role, request.organisation)
        return api.InvitedColleague(made, "code-of-a-colleague", "", self.sends_mail)

    def _list_colleague_invitations(self, _: api.ListColleagueInvitations, credential: Credential | None) -> api.ColleagueInvitations:
        self._user(credential)
        return api.ColleagueInvitations(tuple(self.colleagues.values()))

    def _withdraw_colleague_invitation(self, request: api.WithdrawColleagueInvitation, credential: Credential | None) -> Nothing:
        self._user(credential)
        left = {code: each for code, each in self.colleagues.items() if each.id != request.id}
        if len(left) == len(self.colleagues):
            raise errors.NotFound("there is no open invitation with this id", hint="list them")
        self.colleagues = left
        return Nothing()

    def _read_colleague_invitation(self, request: api.ReadColleagueInvitation, _: Credential | None) -> api.ColleagueInvitation:
        if request.token not in self.colleagues:
            raise errors.NotFound("this invitation was already used", hint="ask for a new invitation")
        return self.colleagues[request.token]

    def _accept_colleague_invitation(self, request: api.AcceptColleagueInvitation, credential: Credential | None) -> auth.User:
        user = self._user(credential)
        offer = self._read_colleague_invitation(api.ReadColleagueInvitation(request.token), None)
        if user.email != offer.email:
            raise errors.NotAllowed("this invitation is for another email address", hint="log in with the invited address")
        del self.colleagues[request.token]
        return msgspec.structs.replace(user, role=offer.role)

    def _get_setup(self, _: contract.GetSetup, credential: Credential | None) -> contract.SetupFacts:
        self._user(credential)
        return self.setup

    def _dismiss_setup(self, request: contract.DismissSetup, credential: Credential | None) -> Nothing:
        self._user(credential)
        self.setup = msgspec.structs.replace(self.setup, is_dismissed=request.is_dismissed)
        return Nothing()

    def _confirm_registration(self, request: contract.ConfirmRegistration, credential: Credential | None) -> Nothing:
        self._user(credential)
        if request.is_open is not self.setup.open_registration:
            raise errors.BadRequest("registration is open", hint="to change it, set OPEN_REGISTRATION and restart auth")
        self.setup = msgspec.structs.replace(self.setup, is_registration_confirmed=True)
        return Nothing()

    def _send_test_mail(self, _: contract.SendTestMail, credential: Credential | None) -> contract.MailTestResult:
        self._user(credential)
        return self.mail_result

    def _user(self, credential: Credential | None) -> auth.User:
        raise NotImplementedError

    def _check_fresh(self, method: str) -> None:
        raise NotImplementedError
