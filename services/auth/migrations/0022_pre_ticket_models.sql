-- What a worker serves once it has joined with a ticket, and whether administrators may put models on it.
ALTER TABLE tickets
    ADD COLUMN model text NOT NULL DEFAULT '',
    ADD COLUMN accept_models boolean NOT NULL DEFAULT true;
