"""What the parts of the gateway tell each other: frozen types and what follows from them, without I/O."""
