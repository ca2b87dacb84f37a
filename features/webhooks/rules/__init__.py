"""The pure rules of webhooks."""
