-- Statements on partitioned tables were planned at each call, because a plan of one partition looks cheaper than a plan of all.
SET LOCAL lock_timeout = '1s';

ALTER FUNCTION reserve SET plan_cache_mode = force_generic_plan;
ALTER FUNCTION settle SET plan_cache_mode = force_generic_plan;
ALTER FUNCTION extend_hold SET plan_cache_mode = force_generic_plan;
