"""Values that cannot work are refused with one sentence; the schema is closed and refuses unknown values."""

import pytest

from tests.deploy.chart import rendering

ENTRY = ("entry.kind=ingress", "entry.webHost=ai.example.org")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("gateway.nodeKeySecret=key",), "gateway: nodeKeySecret is one node's key, so it needs 1 replica and no autoscaling"),
        (("auth.nodeKeySecret=key",), "auth: nodeKeySecret is one node's key"),
        (("pools.inference.nodeKeySecret=key",), "pools.inference: nodeKeySecret is one node's key"),
        (ENTRY, "entry: keys and prompts would be readable on their way without TLS"),
        (("pools.inference.engine=tgi",), 'pools.inference: the engine "tgi" is unknown; use llama, echo, ollama, openai or vllm.'),
        (("gateway.autoscaling.keda=true",), "gateway.autoscaling: hpa and keda would work against each other; choose one."),
        (("pools.inference.autoscaling.keda=true",), "pools.inference.autoscaling: hpa and keda would work against each other"),
        (("gateway.journal=",), "gateway.journal: without a volume, a restarted pod would lose ended requests"),
        (("namespaces.models=ai-models",), "namespaces: the init Job writes Secrets only into the release's namespace"),
        (("image.registry=",), "image.registry: name the registry that has the images of aimesh"),
        (("image.tag=latest",), "image.tag: latest is no version"),
        (("gateway.autoscaling.min=21",), "gateway.autoscaling: min is larger than max."),
        (("pools.inference.autoscaling.metric=wanted",), "pools.inference.autoscaling: the metric wanted needs keda instead of hpa."),
        (("pools.inference.engine=vllm",), "pools.inference: the engine vllm needs a model."),
        (("secrets.source=external",), "secrets.externalStore: name the SecretStore"),
        (("entry.kind=ingress",), "entry.webHost: the entry needs the host"),
        ((*ENTRY, "tls.selfSigned=true", "entry.observabilityPaths=true"), "entry.observabilityPaths: needs observability.install"),
        (("postgres.cnpg=true",), "postgres: choose one of trial, cnpg and externalSecret."),
        (("postgres.trial=false",), "postgres: choose one of trial, cnpg and externalSecret."),
        (("nats.publicHost=nats.example.org",), "nats.publicHost: machines outside need TLS"),
        (("nats.tls=certManager",), "nats.tls: certManager needs tls.issuerRef."),
        (("backup.enabled=true",), "backup.settings: BACKUP_TO says where backups go."),
    ],
)
def test_it_is_refused_with_a_sentence(settings: tuple[str, ...], sentence: str) -> None:
    said = rendering.refusal(*settings)
    assert said.startswith(sentence)
    assert said.endswith(".")
    assert said.count(". ") == 0


@pytest.mark.parametrize(
    "settings",
    [
        ("gateway.nodeKeySecret=key", "gateway.autoscaling.hpa=false", "gateway.replicas=1"),
        (*ENTRY, "tls.selfSigned=true"),
        (*ENTRY, "entry.allowPlainHttp=true"),
        ("namespaces.models=ai-models", "secrets.source=existing"),
        ("gateway.autoscaling.hpa=false", "gateway.autoscaling.keda=true"),
        ("--set-json=pools.inference.pricePerHour=0.66", "--set-json=pools.inference.autoscaling.firstTokenSeconds=2.5"),
    ],
)
def test_it_is_accepted(settings: tuple[str, ...]) -> None:
    assert rendering.render("", *settings)


@pytest.mark.parametrize(
    "setting",
    [
        "gatway.replicas=3",
        "gateway.replica=3",
        "gateway.replicas=three",
        "gateway.settings.DEFAULT_RATE_LIMITS=500",
        "pools.inference.gpu=1",
        "pools.inference.settings.ENGINE_SLOT=4",
        "auth.secretFiles.SMTP_URLS.secret=mail",
        "nats.tls=on",
    ],
)
def test_the_schema_refuses_it(setting: str) -> None:
    assert "don't meet the specifications of the schema" in rendering.refusal(setting)
