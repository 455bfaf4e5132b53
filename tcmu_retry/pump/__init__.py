"""Moves commands between the kernel's ring and a backend."""
