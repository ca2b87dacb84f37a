"""What webhooks add to the gateway."""

from functools import partial

from features.webhooks import instruments
from features.webhooks.gateway import store as webhook_store
from features.webhooks.gateway.deliveries import JOB, Deliveries
from features.webhooks.gateway.endpoint_secrets import EndpointSecrets
from features.webhooks.gateway.receiver_client import ReceiverClient
from features.webhooks.gateway.rest_webhooks import RestWebhooks
from features.webhooks.gateway.store import WebhookStore
from features.webhooks.gateway.webhook_rpc import WebhookRpc
from features.webhooks.rules.receiver_rules import ReceiverRules
from features.webhooks.settings import WebhookSettings
from services.gateway import background_jobs
from services.gateway.features import Built, GatewayPart, Site


def _build(site: Site) -> Built:
    metrics = site.node.metrics
    store, secrets = WebhookStore(site.database), EndpointSecrets(site.settings.prompt_hash_secret)
    receivers = ReceiverClient(ReceiverRules.parse(site.settings.of(WebhookSettings).webhook_allowed_hosts))
    count, oldest = metrics.counter(instruments.DELIVERIES), metrics.gauge(instruments.OLDEST)
    deliveries = Deliveries(store, receivers, secrets, site.items, count=count, oldest=oldest, now=site.now)
    rpc = WebhookRpc(store, deliveries, receivers, secrets, site.audit_reporting)
    return Built(
        served=[rpc],
        routes=RestWebhooks(rpc, site.node.id).routes(),
        tasks={"webhooks": deliveries.run, "age of webhooks": partial(background_jobs.repeat, JOB, 15, deliveries.measure, metrics)},
        delete_old=store.delete_old,
        erase=store.erase,
        on_tenant_event=webhook_store.enqueue,
    )


PART = GatewayPart(_build)
