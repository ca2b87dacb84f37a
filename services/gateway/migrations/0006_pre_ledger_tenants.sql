-- The second wall for what people have and spend, too: `sees` as for the request log. The service's own work, which holds and settles for
-- everybody at once, sees all rows; what somebody asks for sees one tenant's.

ALTER TABLE accounts ENABLE ROW LEVEL SECURITY;
ALTER TABLE accounts FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON accounts USING (sees(owner));

ALTER TABLE key_spending ENABLE ROW LEVEL SECURITY;
ALTER TABLE key_spending FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON key_spending USING (sees(owner));

ALTER TABLE reservations ENABLE ROW LEVEL SECURITY;
ALTER TABLE reservations FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON reservations USING (sees(owner));

ALTER TABLE entries ENABLE ROW LEVEL SECURITY;
ALTER TABLE entries FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON entries USING (sees(owner));

ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE idempotency_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON idempotency_keys USING (sees(owner));
