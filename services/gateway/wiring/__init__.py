"""Connects the gateway's parts, in this order: stores, scheduling, admission, answering, selling, models, edge."""
