"""One data set per file; the file's name is the set's name, and ``load(seed)`` returns a ``MultimodalData``."""
