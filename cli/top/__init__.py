"""`aicli top`: the whole mesh on one screen. Answers become readings, a frame, lines, and output on a terminal."""
