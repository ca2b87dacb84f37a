"""What hello adds to the pages."""

from features.hello.web import pages

from services.web.features import WebPart

PART = WebPart(pages=(pages,))
