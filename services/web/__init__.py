"""web: pages for people, and one address for everything. Stores nothing; what it shows it asks auth and the gateway for."""
