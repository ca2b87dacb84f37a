"""What files add to the pages."""

from features.files.web import own_files
from services.web.features import WebPart

PART = WebPart(archive_files=own_files.read_own)
