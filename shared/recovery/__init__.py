"""The recovery log: keeps what makes the platform stricter outside the database, and applies it again to a restored one."""
