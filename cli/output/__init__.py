"""What commands print and take: tables, streams, amounts, durations, exit codes."""
