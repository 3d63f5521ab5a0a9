"""Is a policy a lookup table? The verdict over the function and the mechanism axis."""
