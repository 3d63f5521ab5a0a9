"""What looking costs, and how HookedACT compares with a network without hooks."""
