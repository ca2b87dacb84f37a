-- Plans are documents of the gateway's configuration, so their names are an open set here; budgets renew, and users and organizations have
-- them, too.

ALTER TABLE users
    DROP CONSTRAINT users_subscription_tier_check,
    ADD COLUMN budget jsonb CONSTRAINT users_budget_check CHECK (budget IS NULL OR coalesce(jsonb_path_match(
        budget, '$.micro >= 1 && (!exists($.every) || $.every == "day" || $.every == "week" || $.every == "month")', silent => true
    ), false));
ALTER TABLE organisations
    DROP CONSTRAINT organisations_subscription_tier_check,
    ADD COLUMN budget jsonb CONSTRAINT organisations_budget_check CHECK (budget IS NULL OR coalesce(jsonb_path_match(
        budget, '$.micro >= 1 && (!exists($.every) || $.every == "day" || $.every == "week" || $.every == "month")', silent => true
    ), false));
-- Not in the limits, which are numbers. Null: the budget covers the key's whole life.
ALTER TABLE api_keys
    ADD COLUMN budget_every varchar(5) CONSTRAINT api_keys_budget_every_check CHECK (budget_every IN ('day', 'week', 'month'));

-- Beside the triggers for the other columns: 0024 may run after this and makes that of the keys anew.
CREATE TRIGGER users_budget_changed AFTER UPDATE OF budget ON users FOR EACH ROW EXECUTE FUNCTION user_changed();
CREATE TRIGGER organisations_budget_changed AFTER UPDATE OF budget ON organisations FOR EACH STATEMENT EXECUTE FUNCTION all_changed();
CREATE TRIGGER api_keys_budget_changed AFTER UPDATE OF budget_every ON api_keys FOR EACH ROW EXECUTE FUNCTION api_key_changed();
