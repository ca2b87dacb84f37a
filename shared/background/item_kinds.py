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
    JOURNAL = "journal"
    # --- gateway: the rest
    NOTICE = "notice"
    DELIVERY = "delivery"
    JOB = "job"
    JOB_MODEL = "job_model"
    LINE = "line"
    RECEIPTS = "receipts"
    ANSWER = "answer"
    FILE = "file"
    MODEL_UPLOAD = "model_upload"
    MODEL_VERSION = "model_version"
    ROLLOUT = "rollout"
    CHANNEL = "channel"
    ORDER = "order"
    # --- auth
    ERASURE = "erasure"
    ACCOUNT_NOTICE = "account_notice"
    RETENTION = "retention"
    # --- metrics
    DUTY = "duty"
    EVENT = "event"
    POOL = "pool"
    # --- workers
    PULL = "pull"
    STORED_MODEL = "stored_model"
    ADOPTED_RECEIPTS = "adopted_receipts"


#: An administrator has to know of these at their first failure.
MONEY = frozenset(
    {
        ItemKind.PAYMENT,
        ItemKind.PLAN_CHANGE,
        ItemKind.RENEWAL,
        ItemKind.OVERAGE,
        ItemKind.REMINDER,
        ItemKind.ORPHAN,
        ItemKind.JOURNAL,
    }
)
#: A failure is logged and counted, and nothing else: these have tries and an end of their own, or are of one moment.
COUNTED_ELSEWHERE = frozenset(
    {
        ItemKind.LINE,
        ItemKind.JOB_MODEL,
        ItemKind.RECEIPTS,
        ItemKind.ANSWER,
        ItemKind.DELIVERY,
        ItemKind.ORDER,
        ItemKind.PULL,
        ItemKind.ACCOUNT_NOTICE,
        ItemKind.DUTY,
        ItemKind.EVENT,
    }
)
