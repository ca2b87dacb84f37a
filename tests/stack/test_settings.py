from pathlib import Path

import pytest

from shared import config, errors
from stack import settings
from stack import stack_home as homes
from stack.stack_home import StackHome

HERE = Path("/somewhere")


@pytest.fixture
def home(tmp_path: Path) -> StackHome:
    found = homes.locate({"AIMESH_HOME": str(tmp_path / "h")})
    homes.ensure_folders(found)
    return found


@pytest.mark.parametrize(
    ("recorded", "environment", "merged"),
    [
        pytest.param({}, {"WEB_SERVICE_PORT": "1"}, {"WEB_SERVICE_PORT": "1"}, id="what is given is kept"),
        pytest.param({"WEB_SERVICE_PORT": "1"}, {}, {"WEB_SERVICE_PORT": "1"}, id="what was given holds"),
        pytest.param({"WEB_SERVICE_PORT": "1"}, {"WEB_SERVICE_PORT": "2"}, {"WEB_SERVICE_PORT": "2"}, id="the newer one wins"),
        pytest.param({"WEB_SERVICE_PORT": "1"}, {"WEB_SERVICE_PORT": ""}, {}, id="an empty one forgets"),
        pytest.param({}, {"PATH": "/bin", "EDITOR": "ed"}, {}, id="other variables are none of ours"),
        pytest.param({}, {"TLS_CERT_FILE": "a.pem"}, {"TLS_CERT_FILE": "/somewhere/a.pem"}, id="paths become absolute"),
        pytest.param({}, {"POOLS_FILE": "pools.yaml"}, {"POOLS_FILE": "/somewhere/pools.yaml"}, id="POOLS_FILE is a path"),
        pytest.param({}, {"HF_TOKEN_FILE": "k"}, {"HF_TOKEN_FILE": "/somewhere/k"}, id="so do files of secrets"),
        pytest.param(
            {"DATABASE_URL_FILE": "/old"}, {"DATABASE_URL": "postgresql://x"}, {"DATABASE_URL": "postgresql://x"}, id="value replaces file"
        ),
    ],
)
def test_merge(recorded: dict[str, str], environment: dict[str, str], merged: dict[str, str]) -> None:
    assert settings.merge(recorded, environment, HERE) == merged


def test_secrets_are_stored_in_files_not_in_the_settings(home: StackHome) -> None:
    environment = {"HF_TOKEN": "sk-canary", "DATABASE_URL": "postgresql://u:canary@h/d", "MODEL_ALIASES": "llama3=smollm2"}
    kept = settings.record(home, environment, HERE)
    assert "canary" not in home.settings_file.read_text()
    assert settings.read_recorded(home) == kept
    assert kept["MODEL_ALIASES"] == "llama3=smollm2"
    assert Path(kept["HF_TOKEN_FILE"]).read_text() == "sk-canary"
    assert Path(kept["HF_TOKEN_FILE"]).stat().st_mode & 0o777 == 0o600
    assert settings.load(kept).database_url == "postgresql://u:canary@h/d"


def test_quotes_and_spaces_survive_the_file(home: StackHome) -> None:
    kept = settings.record(home, {"MODEL_ALIASES": 'a=it\'s $HOME # "x"'}, HERE)
    assert settings.read_recorded(home) == kept == {"MODEL_ALIASES": 'a=it\'s $HOME # "x"'}


@pytest.mark.parametrize("days", ["0", "-1", "36501", "a month", "1.5"])
def test_log_retention_is_ninety_days_or_any_whole_number(days: str) -> None:
    assert settings.load({}).log_retention_days == 90
    assert settings.load({"LOG_RETENTION_DAYS": "30"}).log_retention_days == 30
    with pytest.raises(errors.BadSettings, match="LOG_RETENTION_DAYS"):
        settings.load({"LOG_RETENTION_DAYS": days})


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(errors.BadSettings) as caught:
        settings.load({"WEB_SERVICE_PORT": "http", "AIMESH_ECHO": "perhaps"})
    assert "WEB_SERVICE_PORT" in caught.value.message
    assert "AIMESH_ECHO" in caught.value.message


def test_stack_settings_are_not_reported_as_misspelled() -> None:
    """Variables that other programs read aren't reported either."""
    environment = dict.fromkeys((*settings.known_names(), "SSL_CERT_FILE", "AIMESH_HOME", "HOSTNAME", "LANG"), "x")
    assert list(config.find_misspelled_names(settings.known_names(), environment)) == []
    assert list(config.find_misspelled_names(settings.known_names(), {"ROUTING_POLICI": "x"})) == [
        "ROUTING_POLICI is not a setting; did you mean ROUTING_POLICY?"
    ]
