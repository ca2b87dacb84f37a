"""The kinds of limits that tests name."""

from shared.limits import BY_NAME, LimitKind

TOKENS_OF_DAY = LimitKind("tokens", "window", "token", 86_400, is_held=True)
IMAGES_OF_MONTH = LimitKind("images", "window", "image", 30 * 86_400)
HOUR, MINUTE = BY_NAME["requests_per_hour"], BY_NAME["requests_per_minute"]
TOKENS, SLOTS = BY_NAME["tokens_per_minute"], BY_NAME["concurrency"]
