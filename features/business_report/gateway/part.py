"""What the business report adds to the gateway: the report itself is core, because the page of a route reads it, too."""

from features.business_report.gateway.owner_statements import OwnerStatements
from services.gateway.features import Built, GatewayPart, Site
from services.gateway.usage_store import DaysStore


def _build(site: Site) -> Built:
    return Built(served=[OwnerStatements(DaysStore(site.database), site.node.rpc)])


PART = GatewayPart(_build)
