"""`aicli top`: the whole mesh on one screen. Answers of the mesh become readings, a frame, lines, and a picture on a terminal."""
