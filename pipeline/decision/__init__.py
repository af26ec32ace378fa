"""What may be shipped: measurements held against limits."""
