"""Jobs in cli."""
