"""A PyTorch module beside a network of another program that it claims to be: paired, compared, explained, filled."""
