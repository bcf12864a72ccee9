"""How deltas are packed for the wire, one file each."""
