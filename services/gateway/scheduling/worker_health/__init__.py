"""Which workers are new, unreliable or dishonest, and for how long they are left out."""
