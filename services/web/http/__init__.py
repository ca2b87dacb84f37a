"""The HTTP layer below the pages: headers, errors, event streams, and the proxy to the gateway."""
