"""The pump whose success path is C and io_uring; `pump.py` is its Python half, `loop.c` its theory."""
