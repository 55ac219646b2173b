"""What the comparison is made of: cells that train, locks, tuning. Each file has one subject; import from there."""
