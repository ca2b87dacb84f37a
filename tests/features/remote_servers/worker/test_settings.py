import pytest

from features.remote_servers.settings import ServerSettings
from services.inference.settings import InferenceSettings
from shared import config, errors


def test_the_hosts_of_servers_need_their_backend() -> None:
    given = {"NODE_KEY_FILE": "/nowhere", "REMOTE_MODEL_HOSTS": "vllm.lan"}
    with pytest.raises(errors.BadSettings, match="REMOTE_MODEL_HOSTS needs a worker with INFERENCE_BACKEND=openai"):
        config.load(InferenceSettings, given)
    assert config.load(InferenceSettings, {**given, "INFERENCE_BACKEND": "openai"}).of(ServerSettings).remote_model_hosts == ("vllm.lan",)


def test_keys_are_never_shown() -> None:
    secret = {setting.variable.name for setting in config.settings_of(InferenceSettings) if setting.variable.secret}
    assert {"OPENAI_API_KEY", "OPENAI_UPSTREAM_KEYS"} <= secret
