"""Export and erasure of personal data, and retention."""
