"""How the server turns client updates into the next global adapter, one file each."""
