-- The administrators' setup checklist: who has closed it, and what cannot be read off the settings.

ALTER TABLE preferences ADD COLUMN setup_dismissed boolean NOT NULL DEFAULT false;

CREATE TABLE setup_facts (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- The value of OPEN_REGISTRATION that an administrator last confirmed; null for none.
    confirmed_registration boolean,
    mail_tested_at timestamptz
);

INSERT INTO setup_facts DEFAULT VALUES;
