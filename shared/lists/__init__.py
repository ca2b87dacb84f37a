"""What lists show, for terminals and pages alike: columns, the words of states, and what an empty list says. Pure: no click, no HTML."""
