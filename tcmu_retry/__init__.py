"""An iSCSI LUN that outlives its storage: a TCMU handler that holds failed commands and retries them."""

__version__ = "0.1.0"
