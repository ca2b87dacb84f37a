"""Commands that ask a model, or ask what can be asked and what became of it."""
