"""Files in cli."""
