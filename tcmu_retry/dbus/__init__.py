"""The D-Bus service org.tcmu.Retry1."""
