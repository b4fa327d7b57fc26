"""What is computed of attention weights: ``units``, ``measures``, ``rollout``, ``flow``."""
