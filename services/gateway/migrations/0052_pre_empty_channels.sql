-- Channels that serve nothing until somebody fills them, and which channel serves a version once it is checked.
SET LOCAL lock_timeout = '1s';

ALTER TABLE model_channels ALTER COLUMN version DROP NOT NULL;
-- Null: stable, if it is the first version of its model that passes.
ALTER TABLE model_versions ADD COLUMN channel varchar(32);
