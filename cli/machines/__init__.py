"""Commands for machines: workers, joining a mesh, and the DHT nodes and relays of a mesh."""
