"""Charges for requests: prices, reservations, the ledger, and the rows of ended requests."""
