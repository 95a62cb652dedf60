"""One module per model: its cases. Its peers are beside those of the operators."""
