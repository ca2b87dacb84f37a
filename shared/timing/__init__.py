"""How long something waits, how many run at once, and when something is started again."""
