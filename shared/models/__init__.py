"""The format of models as artifacts: versions, their manifests and names, and which block to copy from whom. Pure."""
