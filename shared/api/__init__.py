"""The RPC contract: every method of every service, declared once with its types and its callers.

Client, server, the NATS micro endpoints and the reference page all take a method from here; nothing is written twice.
"""
