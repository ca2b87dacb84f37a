"""Settled usage for billing systems: each request exactly once, compared with the ledger."""
