"""Commands about machines: workers, joining a mesh, and what lets machines find each other."""
