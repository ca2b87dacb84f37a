"""The protocol of the mesh without any I/O: frames, calls, credit windows, announcements, topics, and keys that are used twice."""
