"""ZeroUnlearn and ZeroUnlearn-GD. Reading order: config, contexts, batches, losses, vectors, keys, method."""
