"""What a node knows of the others: who is alive, which subjects and topics they meet on, which keys are used twice."""
