"""What a demonstration needs: SmolLM2 and an extract of Wikipedia, both out of wheels of the package index."""
