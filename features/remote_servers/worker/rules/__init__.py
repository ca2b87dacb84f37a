"""The pure rules of other servers: dialects, requests and answers."""
