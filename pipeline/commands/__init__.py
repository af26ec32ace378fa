"""What a person types: composing a configuration and checking it."""
