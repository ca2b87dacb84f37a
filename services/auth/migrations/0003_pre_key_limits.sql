-- More limits of a key, and the tiers free, pro and enterprise; who was premium is pro.

ALTER TABLE api_keys
    -- Each: null means what the user's tier allows.
    ADD COLUMN requests_per_minute integer CHECK (requests_per_minute > 0),
    ADD COLUMN tokens_per_minute integer CHECK (tokens_per_minute > 0),
    -- Requests that run at once.
    ADD COLUMN concurrency integer CHECK (concurrency > 0),
    -- What all its requests may cost together, in micro-credits.
    ADD COLUMN budget_micro bigint CHECK (budget_micro > 0);

DROP TRIGGER api_keys_changed ON api_keys;
CREATE TRIGGER api_keys_changed
    AFTER DELETE OR UPDATE OF
        id, user_id, key_hash, name, is_active, requests_per_hour, requests_per_minute, tokens_per_minute, concurrency, budget_micro
    ON api_keys FOR EACH ROW EXECUTE FUNCTION api_key_changed();

-- In this order: neither check holds for both names.
ALTER TABLE users DROP CONSTRAINT users_subscription_tier_check;
UPDATE users SET subscription_tier = 'pro' WHERE subscription_tier = 'premium';
ALTER TABLE users ADD CONSTRAINT users_subscription_tier_check CHECK (subscription_tier IN ('free', 'pro', 'enterprise'));
