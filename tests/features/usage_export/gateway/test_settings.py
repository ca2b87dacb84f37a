import pytest

from shared import errors
from tests.services.gateway.test_settings import load


def test_a_meter_at_stripe_needs_payments_there() -> None:
    with pytest.raises(errors.BadSettings, match="USAGE_EXPORT_STRIPE_METER needs MONEY=on and PAYMENTS=stripe"):
        load(PAYMENTS="stripe", USAGE_EXPORT_STRIPE_METER="mesh_tokens")
