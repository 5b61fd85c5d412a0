"""LoRA groups on linears and convolutions."""
