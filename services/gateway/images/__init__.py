"""Images in requests: found in a body, decoded from base64, and checked by their headers. Pixels are only decoded by workers."""
