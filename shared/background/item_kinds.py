"""The kinds of items that background work puts aside."""

from enum import StrEnum


class ItemKind(StrEnum):
    """The values of the label ``kind``, and of the column in both tables."""

    # --- gateway: money
    PAYMENT = "payment"
    PLAN_CHANGE = "plan_change"
    RENEWAL = "renewal"
    OVERAGE = "overage"
    REMINDER = "reminder"
    ORPHAN = "orphan"
    # --- gateway: the rest
    NOTICE = "notice"
    DELIVERY = "delivery"
    JOB = "job"
    LINE = "line"
    RECEIPTS = "receipts"
    # --- auth
    ERASURE = "erasure"
    ACCOUNT_NOTICE = "account_notice"


#: An administrator has to know of these at their first failure.
MONEY = frozenset({ItemKind.PAYMENT, ItemKind.PLAN_CHANGE, ItemKind.RENEWAL, ItemKind.OVERAGE, ItemKind.REMINDER, ItemKind.ORPHAN})
#: These have tries and an end of their own, so a failure is logged and counted, and nothing else.
COUNTED_ELSEWHERE = frozenset({ItemKind.LINE, ItemKind.RECEIPTS, ItemKind.DELIVERY, ItemKind.ACCOUNT_NOTICE})
