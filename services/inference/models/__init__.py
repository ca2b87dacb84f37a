"""The models of a worker: which ones it has, how much memory they need, and which are loaded."""
