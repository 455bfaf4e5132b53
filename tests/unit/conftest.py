"""Hypothesis without its deadline: on a busy machine 200 ms pass in anything, and say nothing of the code."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
