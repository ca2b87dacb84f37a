"""The RPC contract: every method of every service, declared once with its types and callers.

Clients, servers, the NATS micro endpoints and the RPC reference all use these declarations.
"""
