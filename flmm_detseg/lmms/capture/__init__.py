"""What is captured while the language model runs: attention rows, hidden rows, answers."""
