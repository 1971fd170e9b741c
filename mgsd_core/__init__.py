"""Learns to plan from an image, and runs what was learned."""
