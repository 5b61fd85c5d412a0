"""Pseudo-labels: boxes of Grounding DINO, masks of SAM, lines of text; as COCO. See tools/pseudo_label.py."""
