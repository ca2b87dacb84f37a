"""OpenAI's API on top of the pipeline."""
