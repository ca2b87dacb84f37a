"""Logging in with an OpenID Connect provider: authorization code with PKCE, by people whom the provider knows.

`flow`, `id_tokens`, `discovery`, `mapping` and `accounts` decide and do no I/O; `provider` talks to the provider, `pending` keeps
what a login has begun with, `login` is the whole of it, and `links` and `admission` give the person an account.
"""
