"""How examples are dealt to clients, one file each."""
