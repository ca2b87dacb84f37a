"""Charts: their queries, the answers, and the lines as text. Pure."""
