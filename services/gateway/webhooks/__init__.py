"""Sends events to servers that tenants name: endpoints, deliveries, and the client that reaches only addresses that are allowed."""
