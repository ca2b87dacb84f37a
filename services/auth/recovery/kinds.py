"""The kinds of lines, how each is replayed, and which acts of the audit log they cover. Pure.

A new act that restricts someone needs a kind, or a reason why a restored database may undo it: a test compares both tables with the
reference of the audit log.

There is no kind ``secret.rotated``: nothing rotates a secret while services run. Operators replace DATA_KEY in the settings, outside of the
database.
"""

from shared import features

#: Kind -> the query that replays lines of it; None where Python does (``auth_replay.py``).
KINDS: dict[str, str | None] = {
    "key.revoked": "replay_key_revoked",
    "key.tightened": "replay_key_tightened",
    "key.secret_ended": "replay_key_secret_ended",
    "user.disabled": "replay_user_disabled",
    "user.role_lowered": "replay_user_role_lowered",
    "user.credentials_changed": "replay_user_credentials_changed",
    "user.erased": None,
    "organization.member_removed": "replay_member_removed",
    "organization.role_lowered": "replay_member_role_lowered",
    "invitation.ended": "replay_invitation_ended",
    "node.revoked": "replay_node_revoked",
    "ticket.revoked": "replay_ticket_revoked",
    "ticket.used": "replay_ticket_used",
    # The signing epoch is raised after every restore.
    "signing_keys.rotated_at_once": None,
}

#: Kinds whose lines about one subject build on each other: a chain of rotations must be followed step by step.
STEPWISE = frozenset({"key.secret_ended"})

#: Acts that restrict someone -> the kinds of lines that they may add. Their callers wait for the file.
RESTRICTING: dict[str, frozenset[str]] = {
    "key.revoke": frozenset({"key.revoked"}),
    "key.rotate": frozenset({"key.secret_ended"}),
    "user.close": frozenset({"user.disabled"}),
    "user.role": frozenset({"user.role_lowered"}),
    "user.erased": frozenset({"user.erased"}),
    "user.join": frozenset({"invitation.ended"}),
    "user.register": frozenset({"invitation.ended"}),
    "user.uninvite": frozenset({"invitation.ended"}),
    "password.change": frozenset({"user.credentials_changed"}),
    "password.reset": frozenset({"user.credentials_changed"}),
    "mfa.enable": frozenset({"user.credentials_changed"}),
    "mfa.disable": frozenset({"user.credentials_changed"}),
    "mfa.recovery_codes": frozenset({"user.credentials_changed"}),
    "mfa.remove": frozenset({"user.credentials_changed"}),
    "oidc.unlink": frozenset({"user.credentials_changed"}),
    # A recovery code may have been used up.
    "session.open": frozenset({"user.credentials_changed"}),
    "session.confirm": frozenset({"user.credentials_changed"}),
    "organisation.remove": frozenset({"organization.member_removed"}),
    "organisation.role": frozenset({"organization.role_lowered"}),
    "organisation.withdraw": frozenset({"invitation.ended"}),
    "organisation.join": frozenset({"invitation.ended"}),
    "node.enroll": frozenset({"ticket.used"}),
    "node.revoke": frozenset({"node.revoked"}),
    "ticket.revoke": frozenset({"ticket.revoked"}),
    "signing_keys.rotate": frozenset({"signing_keys.rotated_at_once"}),
}

_VERSIONS = "versions of models are not replayed; the restore's runbook says so"
_SESSIONS_END = "a restore ends all sessions"
#: Acts that restrict someone without a kind -> why not. The gateway's acts with a kind are in ``services.gateway.recovery.kinds``.
WITHOUT_KIND: dict[str, str] = {
    "session.end": _SESSIONS_END,
    "session.reuse": _SESSIONS_END,
    "session.switch": _SESSIONS_END,
    "account.ask_erasure": "the person asks again; the erasure itself is recorded",
    "account.change": "a name or an address, which the log must not contain",
    "organisation.tier": "settings and limits are not replayed; the restore's runbook says so",
    "organisation.budget": "settings and limits are not replayed; the restore's runbook says so",
    "user.budget": "settings and limits are not replayed; the restore's runbook says so",
    "user.tier": "settings and limits are not replayed; the restore's runbook says so",
    "registration.confirm": "confirms a setting, which is outside the database",
    "guard.refuse": "refuses one request",
    "guard.mask": "changes one answer",
    "price.set": "prices are not replayed; the restore's runbook says so",
    "rollout.start": "routes are not replayed; the restore's runbook says so",
    "rollout.change": "routes are not replayed; the restore's runbook says so",
    "rollout.end": "routes are not replayed; the restore's runbook says so",
    "model.undeploy": "settings and limits are not replayed; the restore's runbook says so",
    "model.retire": _VERSIONS,
    "model.revoke": _VERSIONS,
    "model.delete": _VERSIONS,
    "model.promote": _VERSIONS,
    "model.rollback": _VERSIONS,
    "model.withdraw": _VERSIONS,
    "model.unload": "workers keep no state in the database",
    "node.accept_models": "the worker keeps it",
    "node.remove_model": "the worker keeps it",
}

#: Acts that restrict nobody.
HARMLESS = frozenset(
    {
        "account.keep", "account.export", "audit.export", "audit.verify", "audit.overflow", "database.restored", "key.create", "key.rename",
        "catalog.refresh", "mail.test", "model.deploy", "model.load", "model.pull", "model.push", "model.sign",
        "deferred.retry", "node.approve", "node.pardon", "oidc.link", "organisation.create",
        "account.verify", "organisation.invite", "payment.adopt",
        "organisation.rename", "password.ask_reset", "session.approve", "session.deny", "ticket.create", "user.invite", "user.open",
    }
)  # fmt: skip
for _acts in features.acts():
    HARMLESS |= {*_acts.harmless}
    WITHOUT_KIND |= dict.fromkeys(_acts.restricting, _acts.why_not_replayed)
