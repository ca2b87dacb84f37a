"""What charts are drawn from: the questions, their answers, and the lines as texts. Pure."""
