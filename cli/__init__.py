"""aicli: the command line of the mesh, and the stack that `make up` runs."""
