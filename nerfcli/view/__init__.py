"""Look at runs in a browser, also while they train."""
