"""What tests/test_background_work.py has to know of the usage export."""

OTHER_TASKS = {"features/usage_export/gateway/stripe_sink.py": "of a batch, whose exporter is kept"}
OTHER_LOOPS = {
    "features/usage_export/gateway/acknowledged_files.py:read": "pages",
    "features/usage_export/gateway/acknowledged_files.py:write": "pages",
    "features/usage_export/gateway/export.py:_send": "the pieces of one claimed range, which is sent in order",
    "features/usage_export/gateway/store.py:_list_sums": "pages",
}
