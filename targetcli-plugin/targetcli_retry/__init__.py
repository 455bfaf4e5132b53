"""targetcli with nodes for tcmu-retry."""
