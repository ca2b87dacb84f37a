"""Greetings: a method, a command, a page, a setting, a metric, a table and an act."""
