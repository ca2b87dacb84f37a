"""The commands of autoscaling."""
