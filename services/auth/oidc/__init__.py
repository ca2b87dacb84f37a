"""Logging in with an OpenID Connect provider: authorization code with PKCE, by people whom the provider knows.

`flow`, `id_tokens`, `discovery`, `claim_mapping` and `account_matching` decide and do no I/O; `provider` talks to the provider,
`pending_logins` keeps
what a login has begun with, `oidc_login` is the whole of it, and `oidc_store` and `account_provisioning` give the person an account.
"""
