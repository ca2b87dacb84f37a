"""auth: emails about the ends of plans, budgets and balances, about payments, and those of features. Users may switch them off."""

from typing import TYPE_CHECKING, Annotated, Literal, Union

from msgspec import Meta

from shared import features
from shared.api.method import Body, Method, Nothing
from shared.types import KeyId, Moment, Role, TenantId


class LimitUsed(Body, frozen=True, tag_field="kind", tag="limit"):
    """The tokens of a plan, or the money of a budget or of the last top-up, are used up to a threshold."""

    of: Literal["allowance", "budget", "balance"]
    percent: Annotated[int, Meta(ge=1, le=100)]
    #: Tokens of an allowance, else micro-credits.
    used: int
    most: int
    #: Whose budget it is; None: that of the user or the organization.
    key: KeyId | None = None
    #: None: never.
    renews_at: Moment | None = None


class PaymentLate(Body, frozen=True, tag_field="kind", tag="payment"):
    #: None: a payment provider could not collect the money.
    invoice: str | None = None
    due_at: Moment | None = None
    #: What the invoice is for ends now.
    is_last: bool = False


#: Also those of features, whose types only run time knows.
if TYPE_CHECKING:
    Notice = Body
else:
    Notice = Union[(LimitUsed, PaymentLate, *(kind for part in features.modules("notices") for kind in part.NOTICES))]


class AddNotice(Body, frozen=True):
    """Of the gateway: mail this to the user, or to the owners of the organization. The same subject again adds nothing."""

    owner: TenantId
    subject: Annotated[str, Meta(min_length=1, max_length=100)]
    notice: Notice
    #: ISO 4217, of all money.
    currency: Annotated[str, Meta(pattern=r"^[A-Z]{3}\Z")]


add_notice = Method("auth.addNotice", AddNotice, Nothing, callers={Role.GATEWAY})
