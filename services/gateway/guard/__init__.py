"""Finds personal data and secrets in prompts and answers, and reports, masks or refuses them."""
