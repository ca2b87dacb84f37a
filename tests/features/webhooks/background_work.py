"""What tests/test_background_work.py has to know of webhooks."""

OTHER_TASKS: dict[str, str] = {}
OTHER_LOOPS = {
    "features/webhooks/gateway/deliveries.py:_take_due": "each delivery is an attempt",
    "features/webhooks/gateway/store.py:take": "two looks for one delivery",
}
