"""What commands print and parse: tables, streams, amounts, option values, exit codes."""
