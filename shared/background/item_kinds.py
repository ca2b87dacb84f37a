"""The kinds of items that background work puts aside."""

from enum import StrEnum

from shared import features


class ItemKind(StrEnum):
    """The values of the label ``kind``, and of the column in both tables. Features have their own."""

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
    RECEIPTS = "receipts"
    ANSWER = "answer"
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
    # --- workers
    PULL = "pull"
    STORED_MODEL = "stored_model"
    ADOPTED_RECEIPTS = "adopted_receipts"


#: An administrator has to know of these at their first failure.
MONEY = frozenset[str](
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
COUNTED_ELSEWHERE = frozenset[str](
    {
        ItemKind.RECEIPTS,
        ItemKind.ANSWER,
        ItemKind.ORDER,
        ItemKind.PULL,
        ItemKind.ACCOUNT_NOTICE,
        ItemKind.DUTY,
        ItemKind.EVENT,
        *(kind for feature in features.known().values() for kind in feature.counted_items),
    }
)
ALL = (*ItemKind, *(kind for feature in features.known().values() for kind in (*feature.items, *feature.counted_items)))
