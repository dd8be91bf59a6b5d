"""A starting configuration for a data set, each value with its reason."""
