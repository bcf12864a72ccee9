"""Where the frozen base model comes from, one file each."""
