"""The command tcmu-retry: nouns, then verbs."""
