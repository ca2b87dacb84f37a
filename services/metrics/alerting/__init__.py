"""The alerts as this service itself sees them: readings of the mesh's metrics, what holds, since when, and who was told."""
