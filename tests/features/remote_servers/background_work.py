"""What tests/test_background_work.py has to know of other servers."""

OTHER_TASKS = {"features/remote_servers/worker/details_lookup.py": "of a task that is kept"}
OTHER_LOOPS = {
    "features/remote_servers/worker/http_server_client.py:_read_most": "the pieces of one answer",
    "features/remote_servers/worker/openai.py:opened_all": "the servers of the settings, at the start",
    "features/remote_servers/worker/server_watch.py:identify": "the dialects that one server may speak",
}
