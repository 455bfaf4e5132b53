"""Storage: files and block devices, and the filters laid over them."""
