"""A task, a flow and a runtime of one file each, as a user's own package would have them: chosen by import path."""
