"""The disk's behaviour: CDB to request or reply. Pure: bytes in, bytes out."""
