"""The contract of every operator: validation, documentation, shapes, gradients. One file a family."""
