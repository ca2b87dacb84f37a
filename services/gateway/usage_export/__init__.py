"""Exports settled usage to billing systems, each request exactly once."""
