-- Operators and backup agents log in at NATS without a certificate; their rows let administrators revoke them.
ALTER TABLE nodes DROP CONSTRAINT nodes_role_check;
ALTER TABLE nodes ADD CONSTRAINT nodes_role_check
    CHECK (role IN ('auth', 'gateway', 'worker', 'metrics', 'web', 'client', 'operator', 'backup'));
