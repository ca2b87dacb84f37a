"""Answers that have several readers: those given before, those being made, and those asked for twice."""
