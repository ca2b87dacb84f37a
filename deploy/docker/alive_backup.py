"""Check that the backup agent has opened its store. HEALTHCHECK calls it with the agent's socket."""

import socket
import sys

with socket.socket(socket.AF_UNIX) as agent:
    agent.settimeout(2)
    agent.connect(sys.argv[1])
    # As in features/backup/stack/agent_program.py.
    sys.exit(agent.recv(100) != b"ready\n")
