"""Moves a route's traffic to another target step by step, and rolls back what fails."""
