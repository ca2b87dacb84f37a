"""What the gateway does for servers of machines."""
