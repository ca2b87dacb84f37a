"""Everything that two programs of aimesh need; knows no service."""
