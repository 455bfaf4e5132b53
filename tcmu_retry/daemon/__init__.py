"""One process that serves LUNs: a device each, a service for all."""
