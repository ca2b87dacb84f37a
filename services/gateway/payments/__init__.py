"""Sells plans and credits: subscriptions, invoices, and payment providers."""
