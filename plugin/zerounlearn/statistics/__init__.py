"""C, the second moment of ordinary text's keys. Reading order: processes, files, collect."""
