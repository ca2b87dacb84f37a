"""What backups add to the pages."""

from features.backup.web import pages
from services.web.features import HealthWarning, Tab, WebPart

PART = WebPart(
    pages=(pages,),
    tabs=(Tab(path="/admin/backups", text="Backups", group="System"),),
    warnings=(
        HealthWarning(
            name="without_backups", text="There are no backups.", path="/admin/backups", link="Turn them on", applies=pages.are_missing
        ),
    ),
)
