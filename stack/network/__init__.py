"""How other machines reach this one: its address in their network, and the TLS certificate."""
