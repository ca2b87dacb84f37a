-- Every node of enrollment.json has a row, so that a revoked one stays revoked.
ALTER TABLE nodes DROP CONSTRAINT nodes_role_check;
ALTER TABLE nodes ADD CONSTRAINT nodes_role_check
    CHECK (role IN ('auth', 'gateway', 'worker', 'metrics', 'web', 'client', 'operator', 'backup'));
