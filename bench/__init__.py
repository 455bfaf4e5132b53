"""Measurements of the pumps outside a guest: `bench.outside.measure`."""
