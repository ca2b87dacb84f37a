"""Images found in the body of a request, decoded from base64. Pixels are only decoded by workers."""
