"""The kinds of limits that tests name."""

from shared.limits import BY_NAME

HOUR, MINUTE = BY_NAME["requests_per_hour"], BY_NAME["requests_per_minute"]
TOKENS, SLOTS = BY_NAME["tokens_per_minute"], BY_NAME["concurrency"]
TOKENS_OF_DAY, IMAGES = BY_NAME["tokens_per_day"], BY_NAME["images_per_day"]
