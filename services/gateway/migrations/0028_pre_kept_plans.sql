-- Statements on partitioned tables were planned anew at each call, because a plan of one partition looks cheaper than one that is kept.
SET LOCAL lock_timeout = '1s';

ALTER FUNCTION reserve SET plan_cache_mode = force_generic_plan;
ALTER FUNCTION settle SET plan_cache_mode = force_generic_plan;
ALTER FUNCTION extend_hold SET plan_cache_mode = force_generic_plan;
