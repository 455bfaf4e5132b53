"""Decides: policy, outage states, the hold queue and the engine. Pure; time is an argument."""
