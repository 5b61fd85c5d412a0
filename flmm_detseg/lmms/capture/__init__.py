"""What is caught while the language model runs: attention rows, hidden rows, answers."""
