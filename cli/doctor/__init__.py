"""`aicli doctor`: its checks and their findings."""
