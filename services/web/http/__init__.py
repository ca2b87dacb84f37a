"""HTTP before the pages: headers, errors, event streams, and what is passed on to the gateway."""
