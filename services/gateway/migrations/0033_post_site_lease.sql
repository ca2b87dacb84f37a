-- A second site is a standby of PostgreSQL, so no gateway reads a lease.
DROP FUNCTION site_may_reserve();
DROP VIEW current_site_lease;
DROP TABLE site_lease;
