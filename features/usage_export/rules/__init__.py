"""The pure rules of the usage export."""
