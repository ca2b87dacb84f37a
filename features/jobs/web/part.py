"""What jobs add to the pages."""

from features.jobs.web import pages
from services.web.features import Tab, WebPart

PART = WebPart(pages=(pages,), tabs=(Tab(path="/jobs", text="Jobs", group="Pages"),), archive={"jobs": pages.read_own})
