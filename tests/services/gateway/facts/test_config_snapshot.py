"""What plans start from."""

from services.gateway.facts import config_snapshot
from shared.config_documents import PlanDocument


def test_a_plan_with_a_fee_starts_from_the_limits_of_pro() -> None:
    """A customer of a 99-dollar plan had 100 requests an hour, as nobody else who pays."""
    team = PlanDocument(fee="99.00", for_sale=True, overage_limit="50.00")
    pro = PlanDocument(overage_limit="100.00", stripe_price="price_1", file_bytes=7)
    plans = config_snapshot.all_plans({"team": team, "basic": PlanDocument(fee="0.00"), "pro": pro})
    numbers = ("requests_per_hour", "requests_per_minute", "concurrency", "file_bytes", "queued_lines", "included_tokens")
    assert [getattr(plans["team"], name) for name in numbers] == [1_000, 100, 100, 7, None, 100_000]
    assert [getattr(plans["basic"], name) for name in numbers] == [100, 10, 10, 1 << 30, 50_000, 100_000]
    assert plans["team"].source_of("file_bytes") == "plan pro"
    sold = plans["team"].fee_micro, plans["team"].overage_micro, plans["team"].stripe_price
    assert sold == (99_000_000, 50_000_000, None), "pro's price at a provider is not the team's"
