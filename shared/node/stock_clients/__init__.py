"""Callers that do not run our code: NATS clients and JavaScript's @hyperswarm/rpc."""
