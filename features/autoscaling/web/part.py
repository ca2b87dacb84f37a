"""What autoscaling adds to the pages."""

from features.autoscaling.web import pages
from services.web.features import Tab, WebPart

PART = WebPart(pages=(pages,), tabs=(Tab(path="/admin/capacity", text="Capacity", group="Operate"),))
