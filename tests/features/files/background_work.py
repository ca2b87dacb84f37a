"""What tests/test_background_work.py has to know of files."""

OTHER_TASKS: dict[str, str] = {}
OTHER_LOOPS = {
    "features/files/gateway/file_storage.py:clean": "pages; each file is an item",
    "features/files/gateway/file_storage.py:read": "the parts of one file",
}
