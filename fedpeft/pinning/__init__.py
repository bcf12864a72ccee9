"""What the operator of a client's node lets a server ask: written down, signed, checked before data is read."""
