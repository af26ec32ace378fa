"""Many runs: jobs and their states, search, clusters."""
