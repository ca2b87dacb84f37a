"""The web service: the pages, and one address for everything. It stores nothing; auth and the gateway have the data."""
