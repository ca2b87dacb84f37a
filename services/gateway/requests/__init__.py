"""The life of one request: admission, the pipeline, its state while it runs, and repeats."""
