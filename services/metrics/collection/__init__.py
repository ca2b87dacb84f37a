"""What the mesh tells of itself: numbers, events and lines of logs, read from every node and judged."""
