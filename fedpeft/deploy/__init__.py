"""A federation on real nodes: keys, processes, containers, and jobs handed to them."""
