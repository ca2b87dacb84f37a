"""Links between nodes, whatever carries them: NATS inside a mesh, Hyperswarm between machines anywhere."""
