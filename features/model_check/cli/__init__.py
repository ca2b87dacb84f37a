"""The command that checks a model, its scripts, and how answers are judged."""
