"""Engine processes as their worker sees them: started, spoken to, watched, and started again."""
