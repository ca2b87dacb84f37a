"""What the business report adds to the pages."""

from features.business_report.web import cost, report, statements
from services.web.features import Tab, WebPart

PART = WebPart(
    pages=(report, cost, statements),
    tabs=(
        Tab(path="/admin/report", text="Report", group="Money"),
        Tab(path="/statement", text="Monthly statement", group="List of nodes"),
    ),
)
