"""Where the two apps run: in one process, under Flower's simulation runtime, deployed."""
