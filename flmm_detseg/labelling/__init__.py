"""Pseudo-labels: boxes of Grounding DINO and masks of SAM as COCO annotations. See tools/pseudo_label.py."""
