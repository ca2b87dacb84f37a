-- A second email about a key that expires, a day before.
INSERT INTO notice_scans (kind, until, last_id) VALUES ('key_ends', now(), '00000000-0000-0000-0000-000000000000');
