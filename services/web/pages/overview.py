"""What a person sees first: what is left, what was used, and the first steps."""

import asyncio
from datetime import UTC

from litestar import get
from litestar.di import NamedDependency

from services.web import usage_chart, views
from services.web.visits import Page, Visit
from shared.api import auth, gateway
from shared.types import Credential


@get("/dashboard")
async def dashboard(visit: NamedDependency[Visit]) -> Page:
    return await show(visit)


async def show(visit: Visit, *, new_key: Credential | None = None, welcome: bool = False) -> Page:
    """Shows what can be had: a gateway that is down takes the numbers away, not the page."""
    quota, usage, models = await asyncio.gather(
        visit.ask(gateway.get_user_quota, gateway.GetUserQuota()),
        visit.ask(auth.get_user_usage, auth.GetUserUsage()),
        visit.ask(gateway.list_models, gateway.ListModels()),
    )
    now = visit.site.now()
    view = views.DashboardPage(
        username=visit.person.user.username,
        tier=visit.person.user.tier,
        quota=views.quota(quota, now) if quota else None,
        account=quota.account if quota else None,
        chart=usage_chart.draw(usage.days, now.astimezone(UTC).date()) if usage else None,
        new_key=new_key,
        welcome=welcome,
        address=visit.address,
        model=models.models[0].name if models and models.models else None,
    )
    return visit.page("dashboard.html", view, here="dashboard")


ROUTES = (dashboard,)
