"""Operators of the update phase: SAM perturbation, restore, projected SGD and AdamW steps."""
