"""Shares answers between readers: idempotency keys, the response cache, and resumed streams."""
