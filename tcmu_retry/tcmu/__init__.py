"""The kernel's side: ring, uio, netlink and configfs."""
