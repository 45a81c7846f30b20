"""EasyEdit's two editions: found, imported without side effects, and the 2023 wheel made to run."""
