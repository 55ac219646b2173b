"""One's own data: a folder with a table, or torch data sets."""
