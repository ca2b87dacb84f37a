"""Sessions, tokens, and how often something may be tried: what a credential is worth."""
