"""auth and gateway: for administrators, a service's settings (read-only), and the checklist of what to set up."""

import msgspec

from shared import limits
from shared.api.method import PEOPLE, PEOPLE_OR_GATEWAY, Body, Method, Nothing
from shared.types import Moment, PlanName, Role


class ShownSetting(Body, frozen=True, omit_defaults=False):
    name: str
    #: Empty if not set. For a secret, only whether it is set.
    value: str
    default: str
    help: str
    is_secret: bool = False


class GetSettings(Body, frozen=True):
    pass


class ShownSettings(Body, frozen=True):
    settings: tuple[ShownSetting, ...]


class ListTiers(Body, frozen=True):
    pass


@limits.fields(int | None, after="tier")
class TierTerms(Body, frozen=True, omit_defaults=False):
    """A tier's limits; None is unlimited."""

    tier: PlanName
    #: Tokens included each month, while MONEY is on.
    included_tokens: int | None = None


class Tiers(Body, frozen=True):
    tiers: tuple[TierTerms, ...] = msgspec.field(default_factory=tuple)


class GetSetup(Body, frozen=True):
    pass


class SetupFacts(Body, frozen=True, omit_defaults=False):
    #: Of the caller.
    has_second_factor: bool
    #: Of the caller: they closed the checklist.
    is_dismissed: bool
    #: PUBLIC_URL, which the links in emails begin with; empty if not set.
    public_url: str
    has_mail_server: bool
    #: When the mail server last accepted a test email; None for never.
    mail_tested_at: Moment | None
    open_registration: bool
    #: An administrator has confirmed that registration is as it is.
    is_registration_confirmed: bool
    #: Other open accounts, 1,000 at most.
    colleagues: int
    #: Open invitations to the mesh, 1,000 at most.
    invitations: int


class DismissSetup(Body, frozen=True):
    #: False shows the checklist again.
    is_dismissed: bool = True


class ConfirmRegistration(Body, frozen=True):
    """Confirm that registration stays open, or closed. The setting OPEN_REGISTRATION changes it."""

    is_open: bool


class SendTestMail(Body, frozen=True):
    """Send an email to the caller now."""


class MailTestResult(Body, frozen=True, omit_defaults=False):
    is_accepted: bool
    #: What the mail server said, or why it couldn't be asked.
    answer: str


auth_settings = Method("auth.getSettings", GetSettings, ShownSettings, callers=PEOPLE_OR_GATEWAY)
gateway_settings = Method("gateway.getSettings", GetSettings, ShownSettings, callers=PEOPLE)
list_tiers = Method("gateway.listTiers", ListTiers, Tiers, callers={*PEOPLE, Role.AUTH})
get_setup = Method("auth.getSetup", GetSetup, SetupFacts, callers=PEOPLE_OR_GATEWAY)
dismiss_setup = Method("auth.dismissSetup", DismissSetup, Nothing, callers=PEOPLE_OR_GATEWAY)
confirm_registration = Method("auth.confirmRegistration", ConfirmRegistration, Nothing, callers=PEOPLE_OR_GATEWAY)
send_test_mail = Method("auth.sendTestMail", SendTestMail, MailTestResult, callers=PEOPLE_OR_GATEWAY)
