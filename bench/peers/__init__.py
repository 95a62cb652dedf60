"""One module per operator: the same work done with other libraries."""
