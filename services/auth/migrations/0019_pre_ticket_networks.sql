-- From where a ticket that is bound to networks was used, so that another place is noticed.
ALTER TABLE tickets ADD COLUMN seen_networks text[] NOT NULL DEFAULT '{}';
