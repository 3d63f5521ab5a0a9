"""Results -> console, HTML and pictures; computes nothing."""
