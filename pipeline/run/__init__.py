"""One run: its plan and keys, the artifact store, the walk over its stages."""
