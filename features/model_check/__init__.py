"""Scripted tool calls that show whether a model suits agents."""
