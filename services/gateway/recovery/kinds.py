"""The kinds of lines of the gateway, how each is replayed, and which acts of the audit log they cover. Pure.

Every change of a policy is a line with the whole value, not only those that tighten: whether a value is stricter depends on the levels
around it, and the last value is what people decided. Replay applies the newest line of each policy if it is newer than the restored
version. Invoices are whole, with names and addresses: they are kept as long as the log, also of accounts that were erased, and must be the
same after a restore. The log contains no other texts, so the following is not replayed:

- notes of credit movements, refunds and policies: they are replaced by "recovery log".
- own patterns and allowed texts of guardrails (``POLICY_TEXTS``). If a digest shows that they changed, the restored patterns stay, because
  they restrict, and the allowed texts are dropped, because they permit. The runbook of ``database_restored`` says how to find them.
"""

#: Kind -> the query that replays lines of it.
KINDS: dict[str, str | None] = {
    "credits.moved": "replay_credits_moved",
    "credits.reverted": "replay_credits_reverted",
    "organization.policy_tightened": "replay_policies",
    "invoice.written": "replay_invoices",
    "plan.changed": "replay_plans",
}

#: Acts whose callers wait for the file -> the kinds of lines that they may add.
RESTRICTING: dict[str, frozenset[str]] = {
    "credits.move": frozenset({"credits.moved"}),
    "credits.revert": frozenset({"credits.reverted"}),
    "plan.set": frozenset({"plan.changed", "invoice.written"}),
    "invoice.pay": frozenset({"credits.moved", "plan.changed", "invoice.written"}),
    "invoice.void": frozenset({"credits.moved", "plan.changed", "invoice.written"}),
    "policy.set": frozenset({"organization.policy_tightened"}),
    # Only the policies among their documents: prices, routes and limits are settings, which are not replayed.
    "config.apply": frozenset({"organization.policy_tightened"}),
    "config.rollback": frozenset({"organization.policy_tightened"}),
    "config.import": frozenset({"organization.policy_tightened"}),
}

#: The fields of a policy that contain texts of people; migration 0025 keeps them out of the log.
POLICY_TEXTS = frozenset({"guard.patterns", "guard.allow"})
