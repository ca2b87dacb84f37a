"""What every part of front knows of local servers."""
