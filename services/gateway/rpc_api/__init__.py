"""Serves RPC methods: accounts, routes, policies, rollouts and the configuration, and streams of answers."""
