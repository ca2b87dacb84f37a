-- What requests hold at targets is in `target_holds` alone (0024).
SET LOCAL lock_timeout = '1s';
DROP TRIGGER targets_are_released ON reservations;
DROP FUNCTION release_targets();
DROP FUNCTION hold_target(uuid, text, text, bigint, bigint);
DROP FUNCTION spend_target(date, text, text, bigint);
ALTER TABLE reservations DROP COLUMN held_route, DROP COLUMN held_targets, DROP COLUMN held_target_micro;
