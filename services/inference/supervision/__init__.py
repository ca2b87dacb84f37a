"""Supervise engine processes: start them, talk to them, watch them and restart them."""
