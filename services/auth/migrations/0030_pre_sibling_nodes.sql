-- The node of the same machine that vouched for this one; null for a machine's first node.
ALTER TABLE nodes ADD COLUMN machine text REFERENCES nodes (id);
CREATE INDEX nodes_by_machine ON nodes (machine) WHERE machine IS NOT NULL;
