"""One module per operator: its cases and its peers."""
