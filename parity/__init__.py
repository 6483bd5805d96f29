"""Do two programs draw the same attention maps? The comparison, and where it first fails."""
