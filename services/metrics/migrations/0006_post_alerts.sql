-- Alerts are in `leader_state`, in the row `alerts`. Windows of samples are not kept.
DROP TABLE alarms;
DROP TABLE attendance;
DELETE FROM leader_state WHERE name = 'window';
