"""Local training: the loop, the optimizer, the workbench that holds all parts."""
