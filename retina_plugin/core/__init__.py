"""What every other package may use: errors, files, random state, processes. Nothing here knows about detection."""
